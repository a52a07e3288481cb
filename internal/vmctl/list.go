package vmctl

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Machine is a line of a list.
type Machine struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	Status    string    `json:"status"`
	Ready     bool      `json:"ready"`
	Node      string    `json:"node,omitempty"`
	IPs       []string  `json:"ips,omitempty"` // of the first interface
	Created   time.Time `json:"created"`
	// RestartRequired is why a change waits for a restart.
	RestartRequired string `json:"restartRequired,omitempty"`
}

// List returns the virtual machines of a namespace; of all when it is empty.
func (c *Client) List(ctx context.Context, namespace string) ([]Machine, error) {
	var vms virtv1.VirtualMachineList
	var vmis virtv1.VirtualMachineInstanceList
	for _, list := range []client.ObjectList{&vms, &vmis} {
		if err := c.api.List(ctx, list, client.InNamespace(namespace)); err != nil {
			return nil, fmt.Errorf("list virtual machines: %w", err)
		}
	}
	running := map[Name]virtv1.VirtualMachineInstance{}
	for _, vmi := range vmis.Items {
		running[Name{vmi.Namespace, vmi.Name}] = vmi
	}
	all := []Machine{}
	for _, vm := range vms.Items {
		all = append(all, describe(vm, running[Name{vm.Namespace, vm.Name}]))
	}
	slices.SortFunc(all, func(a, b Machine) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return all, nil
}

func describe(vm virtv1.VirtualMachine, vmi virtv1.VirtualMachineInstance) Machine {
	m := Machine{
		Namespace: vm.Namespace, Name: vm.Name, Status: string(vm.Status.PrintableStatus), Ready: vm.Status.Ready,
		Node: vmi.Status.NodeName, Created: vm.CreationTimestamp.Time,
	}
	if len(vmi.Status.Interfaces) > 0 {
		m.IPs = vmi.Status.Interfaces[0].IPs
	}
	for _, condition := range vm.Status.Conditions {
		if condition.Type == virtv1.VirtualMachineRestartRequired {
			m.RestartRequired = condition.Message
		}
	}
	return m
}

// Address is what is known of one of a machine's interfaces.
type Address struct {
	Interface string   `json:"interface"` // in the VM; empty: only the guest knows it
	Network   string   `json:"network"`   // pod, or the attachment definition
	Binding   string   `json:"binding"`
	MAC       string   `json:"mac"`
	IPs       []string `json:"ips"`
	GuestName string   `json:"guestName,omitempty"`
	PodName   string   `json:"podName,omitempty"`
	Link      string   `json:"link,omitempty"`
	Sources   []string `json:"sources"`
	// Said is who says which addresses; nil: the machine's node does not answer.
	Said *Said `json:"said,omitempty"`
}

// Said is who says which addresses an interface has. IPs is what it comes to.
type Said struct {
	Network    []string `json:"network,omitempty"`    // that it gave
	GuestAgent []string `json:"guestAgent,omitempty"` // that the guest has
	Observed   []string `json:"observed,omitempty"`   // that the guest was heard to use
	Disagree   bool     `json:"disagree,omitempty"`
}

// Addresses returns the interfaces of a running machine.
func (c *Client) Addresses(ctx context.Context, m Name) ([]Address, error) {
	vmi, err := c.vmi(ctx, m)
	if err != nil {
		return nil, err
	}
	said := c.said(ctx, m)
	all := []Address{}
	for _, i := range vmi.Status.Interfaces {
		a := Address{
			Interface: i.Name, MAC: i.MAC, IPs: append([]string{}, i.IPs...), GuestName: i.InterfaceName, PodName: i.PodInterfaceName,
			Link: i.LinkState, Sources: strings.FieldsFunc(i.InfoSource, func(r rune) bool { return r == ',' || r == ' ' }),
		}
		a.Network, a.Binding = networkOf(vmi, i.Name)
		a.Said = said[i.Name]
		all = append(all, a)
	}
	return all, nil
}

// said asks the machine's node who says what, by interface. It may be unable to answer, and does not when the machine is paused or starts.
func (c *Client) said(ctx context.Context, m Name) map[string]*Said {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	var answer []struct {
		Interface string
		Said
	}
	if err := c.get(ctx, instances, m, "addresses", &answer); err != nil {
		return nil
	}
	all := map[string]*Said{}
	for n := range answer {
		all[answer[n].Interface] = &answer[n].Said
	}
	return all
}

func networkOf(vmi *virtv1.VirtualMachineInstance, name string) (network, binding string) {
	for _, n := range vmi.Spec.Networks {
		switch {
		case n.Name != name:
		case n.Multus != nil:
			network = n.Multus.NetworkName
		default:
			network = "pod"
		}
	}
	for _, i := range vmi.Spec.Domain.Devices.Interfaces {
		if i.Name == name {
			binding = bindingName(i)
		}
	}
	return network, binding
}

func bindingName(i virtv1.Interface) string {
	switch {
	case i.Binding != nil:
		return i.Binding.Name
	case i.Masquerade != nil:
		return "masquerade"
	case i.SRIOV != nil:
		return "sriov"
	case i.PasstBinding != nil:
		return "passt"
	default:
		return "bridge"
	}
}
