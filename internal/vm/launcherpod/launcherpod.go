// Package launcherpod says what the pod of a virtual machine looks like: labels, annotations, containers, volumes, resources.
// It is pure: everything it needs to know of the cluster comes in a Request, and an equal Request gives an equal pod. It must
// not decide when a pod is made.
package launcherpod

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/tenancy/attachment"
)

const (
	// Container is the name of the container that holds the launcher and QEMU; always the first.
	Container = "compute"
	// User is the user and group that QEMU runs as, and the group that owns volumes.
	User = 107
	// Program is the launcher in its image.
	Program = "/patchbay-launcher"
	// passt is the binding plugin of that name; a core binding is the same.
	passt = "passt"
)

// Grace periods in seconds. A pod lives longer than its guest's grace period, so that the launcher can see the guest end, and
// its specification leaves room again for what a sidecar does then.
const (
	PodDeleteMargin = 15
	podSpecMargin   = 30
)

// Cluster is what an administrator chose for all machines.
type Cluster struct {
	// LauncherImage is the image of the compute container.
	LauncherImage string
	// Plugins are the registered network binding plugins, by name.
	Plugins map[string]virtv1.InterfaceBindingPlugin
	// CPUAllocationRatio is how many guest CPUs share one requested CPU of a node; 0 means 10.
	CPUAllocationRatio int
}

// Claim is what the pod must know of a persistent volume claim.
type Claim struct {
	Block bool // a device, not a file system
}

// Migration makes the pod the target of a live migration.
type Migration struct {
	Name         string
	UID          types.UID
	NodeSelector map[string]string // added to the machine's own
	SourceNode   string            // where the target must not run
}

// Request is everything a pod is made from.
type Request struct {
	Cluster Cluster
	VMI     *virtv1.VirtualMachineInstance
	// Claims are the claims that the machine's volumes use, by claim name; one that is missing is taken for a file system.
	Claims map[string]Claim
	// NetworkResources are extended resources that network attachments ask for, by "namespace/name".
	NetworkResources map[string]string
	// Overlay is what the pod asks of the overlay, by the name of the machine's network.
	Overlay map[string]attachment.Request
	// KVM asks for /dev/kvm, without which the guest is emulated. A migration's target must ask for it if its source has it.
	KVM bool
	// Migration is nil for the pod that a machine starts in.
	Migration *Migration
}

// Build makes the pod. Its name follows from the UID that it is made for, so that making it twice gives one pod.
func Build(r Request) (*corev1.Pod, error) {
	annotations, err := podAnnotations(r)
	if err != nil {
		return nil, err
	}
	resources, err := podResources(r)
	if err != nil {
		return nil, err
	}
	volumes := podVolumes(r)
	vmi := r.VMI
	pod := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name:            Name(vmi, r.Migration),
			GenerateName:    generateName(vmi),
			Namespace:       vmi.Namespace,
			Labels:          podLabels(r),
			Annotations:     annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(vmi, virtv1.VirtualMachineInstanceGroupVersionKind)},
		},
		Spec: corev1.PodSpec{
			RestartPolicy:                 corev1.RestartPolicyNever,
			EnableServiceLinks:            new(false),
			AutomountServiceAccountToken:  new(needsToken(vmi)),
			ServiceAccountName:            serviceAccount(vmi),
			TerminationGracePeriodSeconds: new(GracePeriod(vmi) + podSpecMargin),
			Hostname:                      Hostname(vmi),
			Subdomain:                     vmi.Spec.Subdomain,
			DNSPolicy:                     vmi.Spec.DNSPolicy,
			DNSConfig:                     vmi.Spec.DNSConfig.DeepCopy(),
			NodeSelector:                  nodeSelector(r),
			Affinity:                      affinity(r),
			Tolerations:                   vmi.Spec.Tolerations,
			TopologySpreadConstraints:     vmi.Spec.TopologySpreadConstraints,
			PriorityClassName:             vmi.Spec.PriorityClassName,
			SchedulerName:                 vmi.Spec.SchedulerName,
			ReadinessGates:                []corev1.PodReadinessGate{{ConditionType: virtv1.VirtualMachineUnpaused}},
			ImagePullSecrets:              volumes.pullSecrets,
			SecurityContext:               podSecurity(vmi),
			Containers:                    []corev1.Container{computeContainer(r, resources, volumes)},
			Volumes:                       volumes.volumes,
		},
	}
	return pod, nil
}

func computeContainer(r Request, resources corev1.ResourceRequirements, volumes volumeSet) corev1.Container {
	return corev1.Container{
		Name:            Container,
		Image:           r.Cluster.LauncherImage,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Command:         []string{Program},
		Ports:           containerPorts(r.VMI),
		Resources:       resources,
		SecurityContext: containerSecurity(),
		LivenessProbe:   probe(r.VMI.Spec.LivenessProbe),
		ReadinessProbe:  probe(r.VMI.Spec.ReadinessProbe),
		VolumeMounts:    volumes.mounts,
		VolumeDevices:   volumes.devices,
	}
}

// podSecurity and containerSecurity satisfy the "restricted" Pod Security Standard.
func podSecurity(vmi *virtv1.VirtualMachineInstance) *corev1.PodSecurityContext {
	return &corev1.PodSecurityContext{
		Sysctls:        sysctls(vmi),
		RunAsUser:      new(int64(User)),
		RunAsGroup:     new(int64(User)),
		RunAsNonRoot:   new(true),
		FSGroup:        new(int64(User)),
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		// A claim with many files is not walked at every start.
		FSGroupChangePolicy: new(corev1.FSGroupChangeOnRootMismatch),
	}
}

// sysctls let passt, which has no capability, listen on every port and ping in the pod's network namespace.
func sysctls(vmi *virtv1.VirtualMachineInstance) []corev1.Sysctl {
	for _, nic := range vmi.Spec.Domain.Devices.Interfaces {
		if nic.PasstBinding != nil || nic.Binding != nil && nic.Binding.Name == passt {
			return []corev1.Sysctl{
				{Name: "net.ipv4.ping_group_range", Value: fmt.Sprintf("%d %d", User, User)},
				{Name: "net.ipv4.ip_unprivileged_port_start", Value: "0"},
			}
		}
	}
	return nil
}

func containerSecurity() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false),
		Privileged:               new(false),
		RunAsNonRoot:             new(true),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}

// GracePeriod is how long in seconds the guest may take to shut down.
func GracePeriod(vmi *virtv1.VirtualMachineInstance) int64 {
	if s := vmi.Spec.TerminationGracePeriodSeconds; s != nil {
		return *s
	}
	return virtv1.DefaultGracePeriodSeconds
}

// Hostname is the host name of the pod and the guest.
func Hostname(vmi *virtv1.VirtualMachineInstance) string {
	if vmi.Spec.Hostname != "" {
		return vmi.Spec.Hostname
	}
	label, _, _ := strings.Cut(vmi.Name, ".")
	if len(label) > 63 {
		label = strings.TrimRight(label[:63], "-")
	}
	return label
}

// needsToken says whether something in the pod talks to the API server: the guest that asked for a token, or a mesh's proxy.
func needsToken(vmi *virtv1.VirtualMachineInstance) bool {
	for _, v := range vmi.Spec.Volumes {
		if v.ServiceAccount != nil {
			return true
		}
	}
	return strings.EqualFold(vmi.Annotations[istioInject], "true")
}

func serviceAccount(vmi *virtv1.VirtualMachineInstance) string {
	for _, v := range vmi.Spec.Volumes {
		if v.ServiceAccount != nil {
			return v.ServiceAccount.ServiceAccountName
		}
	}
	return vmi.Spec.ServiceAccountName
}

// containerPorts are the ports that interfaces declare. A port name must be unique in a pod, so a later duplicate loses its name.
func containerPorts(vmi *virtv1.VirtualMachineInstance) []corev1.ContainerPort {
	var ports []corev1.ContainerPort
	named := map[string]bool{}
	for _, nic := range vmi.Spec.Domain.Devices.Interfaces {
		for _, p := range nic.Ports {
			port := corev1.ContainerPort{ContainerPort: p.Port, Protocol: corev1.Protocol(p.Protocol)}
			if port.Protocol == "" {
				port.Protocol = corev1.ProtocolTCP
			}
			if !named[p.Name] {
				port.Name = p.Name
			}
			named[p.Name] = true
			ports = append(ports, port)
		}
	}
	return ports
}

// NetworkNotFoundError says that a network attachment definition is missing.
func NetworkNotFoundError(key string) error {
	return fmt.Errorf("failed to locate network attachment definition %s", key)
}
