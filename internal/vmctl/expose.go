package vmctl

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	virtv1 "kubevirt.io/api/core/v1"
)

// Exposure is a Service to be made for a VM.
type Exposure struct {
	Service    string // name
	Type       corev1.ServiceType
	Protocol   corev1.Protocol
	Port       int32 // 0: the ports that the VM's interfaces declare
	TargetPort int32 // 0: Port
	Headless   bool
}

// Expose makes a Service in front of a VM. It goes with the VM.
func (c *Client) Expose(ctx context.Context, m Name, e Exposure) (*corev1.Service, error) {
	vm, err := c.vm(ctx, m)
	if err != nil {
		return nil, err
	}
	ports, err := e.ports(vm)
	if err != nil {
		return nil, err
	}
	owner := metav1.NewControllerRef(vm, virtv1.VirtualMachineGroupVersionKind)
	owner.BlockOwnerDeletion = new(bool)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: e.Service, OwnerReferences: []metav1.OwnerReference{*owner}},
		Spec: corev1.ServiceSpec{
			Type: e.Type, Ports: ports,
			// A label that every pod of the machine has, so that the Service follows a migration.
			Selector: map[string]string{virtv1.DeprecatedVirtualMachineNameLabel: hostLabel(vm)},
		},
	}
	if e.Headless {
		service.Spec.ClusterIP = corev1.ClusterIPNone
	}
	if err := c.api.Create(ctx, service); err != nil {
		return nil, fmt.Errorf("make service %s: %w", e.Service, err)
	}
	return service, nil
}

// hostLabel is what the pods of a machine carry: its host name.
func hostLabel(vm *virtv1.VirtualMachine) string {
	if vm.Spec.Template != nil && vm.Spec.Template.Spec.Hostname != "" {
		return vm.Spec.Template.Spec.Hostname
	}
	label, _, _ := strings.Cut(vm.Name, ".")
	return label[:min(len(label), 63)]
}

func (e Exposure) ports(vm *virtv1.VirtualMachine) ([]corev1.ServicePort, error) {
	if e.Port != 0 {
		target := e.TargetPort
		if target == 0 {
			target = e.Port
		}
		return []corev1.ServicePort{{Protocol: e.Protocol, Port: e.Port, TargetPort: intstr.FromInt32(target)}}, nil
	}
	var ports []corev1.ServicePort
	if vm.Spec.Template != nil {
		for _, i := range vm.Spec.Template.Spec.Domain.Devices.Interfaces {
			for _, p := range i.Ports {
				ports = append(ports, corev1.ServicePort{
					Name: fmt.Sprintf("port-%d", len(ports)+1), Protocol: corev1.Protocol(p.Protocol), Port: p.Port, TargetPort: intstr.FromInt32(p.Port),
				})
			}
		}
	}
	if len(ports) == 0 {
		return nil, fmt.Errorf("virtual machine %s declares no ports; name one with --port", vm.Name)
	}
	return ports, nil
}
