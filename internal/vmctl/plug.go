package vmctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// NIC is a network card to plug.
type NIC struct {
	Name    string // of the interface and its network; empty: the attachment's own name
	Network string // attachment definition, NAME or NAMESPACE/NAME
	MAC     string // empty: one is chosen
	Down    bool   // without carrier
}

// Plug adds a network card to a VM and returns its name. It is in the guest when AwaitPlugged returns, or waits for the next start.
func (c *Client) Plug(ctx context.Context, m Name, nic NIC) (string, error) {
	if nic.Name == "" {
		nic.Name = nic.Network[strings.LastIndexByte(nic.Network, '/')+1:]
	}
	i := virtv1.Interface{Name: nic.Name, MacAddress: nic.MAC}
	i.Bridge = &virtv1.InterfaceBridge{}
	if nic.Down {
		i.State = virtv1.InterfaceStateLinkDown
	}
	network := virtv1.Network{Name: nic.Name, NetworkSource: virtv1.NetworkSource{Multus: &virtv1.MultusNetwork{NetworkName: nic.Network}}}
	return nic.Name, c.edit(ctx, m, func(spec *virtv1.VirtualMachineInstanceSpec) error {
		if interfaceOf(spec, nic.Name) != nil {
			return fmt.Errorf("virtual machine %s has an interface %s already; choose another name with --interface", m.Name, nic.Name)
		}
		spec.Domain.Devices.Interfaces = append(spec.Domain.Devices.Interfaces, i)
		spec.Networks = append(spec.Networks, network)
		return nil
	})
}

// Unplug has a VM's guest let a network card go.
func (c *Client) Unplug(ctx context.Context, m Name, name string) error {
	return c.edit(ctx, m, func(spec *virtv1.VirtualMachineInstanceSpec) error {
		i := interfaceOf(spec, name)
		if i == nil {
			return fmt.Errorf("virtual machine %s has no interface %s; it has %s", m.Name, name, strings.Join(interfaceNames(spec), ", "))
		}
		i.State = virtv1.InterfaceStateAbsent
		return nil
	})
}

// SetLink takes the carrier of a VM's network card away, or gives it back.
func (c *Client) SetLink(ctx context.Context, m Name, name string, up bool) error {
	return c.edit(ctx, m, func(spec *virtv1.VirtualMachineInstanceSpec) error {
		i := interfaceOf(spec, name)
		if i == nil {
			return fmt.Errorf("virtual machine %s has no interface %s; it has %s", m.Name, name, strings.Join(interfaceNames(spec), ", "))
		}
		i.State = virtv1.InterfaceStateLinkDown
		if up {
			i.State = virtv1.InterfaceStateLinkUp
		}
		return nil
	})
}

func interfaceOf(spec *virtv1.VirtualMachineInstanceSpec, name string) *virtv1.Interface {
	for n := range spec.Domain.Devices.Interfaces {
		if spec.Domain.Devices.Interfaces[n].Name == name {
			return &spec.Domain.Devices.Interfaces[n]
		}
	}
	return nil
}

func interfaceNames(spec *virtv1.VirtualMachineInstanceSpec) []string {
	names := []string{}
	for _, i := range spec.Domain.Devices.Interfaces {
		names = append(names, i.Name)
	}
	return names
}

// edit changes a VM's template, again when somebody else has changed it meanwhile.
func (c *Client) edit(ctx context.Context, m Name, change func(*virtv1.VirtualMachineInstanceSpec) error) error {
	for {
		vm, err := c.vm(ctx, m)
		if err != nil {
			return err
		}
		if vm.Spec.Template == nil {
			return fmt.Errorf("virtual machine %s has no template", m.Name)
		}
		before := vm.DeepCopy()
		if err := change(&vm.Spec.Template.Spec); err != nil {
			return err
		}
		err = c.api.Patch(ctx, vm, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		if !isConflict(err) {
			return err
		}
	}
}

// ErrNotRunning says that a change takes effect with the next start.
var ErrNotRunning = errors.New("the virtual machine does not run; the change takes effect when it starts")

// AwaitPlugged waits until the guest of a VM has an interface's card or, with gone, has it no more. ErrNotRunning: there is no guest.
func (c *Client) AwaitPlugged(ctx context.Context, m Name, name string, gone bool) error {
	return await(ctx, func(ctx context.Context) (bool, error) {
		vm, err := c.vm(ctx, m)
		if err != nil {
			return false, err
		}
		if !vm.Status.Created {
			return false, ErrNotRunning
		}
		if why := waitsForRestart(vm, name); why != "" {
			return false, errors.New(why)
		}
		vmi, err := c.vmi(ctx, m)
		if err != nil {
			return false, err
		}
		plugged := slices.ContainsFunc(vmi.Status.Interfaces, func(i virtv1.VirtualMachineInstanceNetworkInterface) bool {
			return i.Name == name && strings.Contains(i.InfoSource, "domain")
		})
		return plugged != gone, nil
	})
}

// waitsForRestart is why the interface is not plugged while the guest runs.
func waitsForRestart(vm *virtv1.VirtualMachine, name string) string {
	for _, c := range vm.Status.Conditions {
		if c.Type == virtv1.VirtualMachineRestartRequired && strings.Contains(c.Message, "interface "+name+" ") {
			return c.Message
		}
	}
	return ""
}
