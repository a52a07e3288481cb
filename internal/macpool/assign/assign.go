// Package assign writes addresses of the pool into virtual machines and pods while they are admitted. It decides which NICs get
// one and keeps what they have; it must not watch or store anything.
package assign

import (
	"context"
	"fmt"
	"maps"
	"net"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/macpool"
)

const (
	// StampAnnotation on a machine is the time of the last admission that changed it.
	StampAnnotation = "kubemacpool.io/transaction-timestamp"
	// WaitingAnnotation marks an object that was admitted while the pool was being rebuilt. Whoever takes it off makes the NICs
	// get their addresses.
	WaitingAnnotation = "patchbay.io/waiting-for-mac-pool"

	kindVM  = "vm"
	kindPod = "pod"
)

// refusal is an error in words that users know.
type refusal string

func (r refusal) Error() string { return string(r) }

const (
	notUnique    refusal = "Failed to mutate virtual machine: every interface must have a unique name"
	notAllocated refusal = "Failed to allocate mac to the vm object"
)

// warning is what clients see instead of a refusal.
const warning = "the MAC address pool is being rebuilt; the interfaces without macAddress get theirs as soon as it is ready, before that the machine starts with temporary ones"

// Config is what an Assigner is made of.
type Config struct {
	Pool *macpool.Pool
	// Ready waits a little for the pool to know every address that is held, and says whether it does.
	Ready func(context.Context) bool
	// Off says that no addresses are given; nil means never.
	Off func() bool
	// Exists says whether a machine is stored already.
	Exists func(ctx context.Context, namespace, name string) bool
	Now    func() time.Time
}

// Assigner answers the admission of machines and pods.
type Assigner struct{ Config }

// VMOwner is a machine as an owner of addresses.
func VMOwner(namespace, name string) macpool.Owner {
	return macpool.Owner{Kind: kindVM, Namespace: namespace, Name: name}
}

// Stored is what the pool wants to know of a stored machine: its stamp and what its NICs hold.
func Stored(vm *virtv1.VirtualMachine) (time.Time, map[string]macpool.Address) {
	stamp, _ := time.Parse(time.RFC3339Nano, vm.Annotations[StampAnnotation])
	nics := map[string]macpool.Address{}
	for _, nic := range interfaces(vm) {
		if a, err := macpool.Parse(nic.MacAddress); err == nil {
			nics[nic.Name] = a
		}
	}
	return stamp, nics
}

// Complete fills in a machine that is created (old is nil) or changed. A dry run records nothing. An error is a refusal.
func (a *Assigner) Complete(ctx context.Context, old, vm *virtv1.VirtualMachine, dryRun bool) (warnings []string, err error) {
	if vm.Spec.Template == nil || vm.DeletionTimestamp != nil || a.off() {
		return nil, nil
	}
	verb := "Failed to update"
	if old == nil {
		verb = "Failed to create"
		if vm.Name != "" && a.Exists(ctx, vm.Namespace, vm.Name) {
			return nil, nil // refused as a duplicate later on
		}
	}
	keep(old, vm)
	if old != nil && same(old, vm) {
		return nil, nil
	}
	if err := unique(interfaces(vm)); err != nil {
		return nil, err
	}
	if warnings, err = a.addresses(ctx, old, vm, dryRun); err != nil {
		return nil, fmt.Errorf("%s virtual machine allocation error: %w", verb, err)
	}
	return warnings, nil
}

func (a *Assigner) off() bool { return a.Off != nil && a.Off() }

// keep restores the addresses that a later write of the machine left out. NICs are the same when they have the same name.
func keep(old, vm *virtv1.VirtualMachine) {
	if old == nil {
		return
	}
	had := map[string]string{}
	for _, nic := range interfaces(old) {
		had[nic.Name] = nic.MacAddress
	}
	all := interfaces(vm)
	for i := range all {
		if all[i].MacAddress == "" {
			all[i].MacAddress = had[all[i].Name]
		}
	}
}

// same says that an update changes nothing that the pool answers for.
func same(old, vm *virtv1.VirtualMachine) bool {
	return maps.Equal(old.Labels, vm.Labels) && maps.Equal(old.Annotations, vm.Annotations) && equality.Semantic.DeepEqual(old.Spec, vm.Spec)
}

func unique(nics []virtv1.Interface) error {
	seen := map[string]bool{}
	for _, nic := range nics {
		if seen[nic.Name] {
			return notUnique
		}
		seen[nic.Name] = true
	}
	return nil
}

// addresses takes what the NICs wish and stamps the machine.
func (a *Assigner) addresses(ctx context.Context, old, vm *virtv1.VirtualMachine, dryRun bool) ([]string, error) {
	changed := old == nil || waits(old) || !equality.Semantic.DeepEqual(interfaces(old), interfaces(vm))
	all, managed := interfaces(vm), map[string]bool{}
	if changed {
		managed = needsAddress(vm)
	}
	var wishes []macpool.Wish
	var at []int
	for i, nic := range all {
		if nic.MacAddress == "" && !managed[nic.Name] {
			continue
		}
		w := macpool.Wish{NIC: nic.Name}
		if nic.MacAddress != "" {
			parsed, err := macpool.Parse(nic.MacAddress)
			if err != nil && Normalize(nic.MacAddress) != "" {
				continue // longer than a NIC's: validation says so
			}
			if err != nil {
				return nil, fmt.Errorf("invalid MAC address format for interface %s: %s: %w", nic.Name, nic.MacAddress, err)
			}
			w.MAC = parsed
		}
		wishes, at = append(wishes, w), append(at, i)
	}
	if err := distinct(wishes); err != nil {
		return nil, err
	}
	stored, _ := time.Parse(time.RFC3339Nano, annotation(old, StampAnnotation))
	stamp := a.Pool.Stamp(a.Now().UTC(), stored)
	delete(vm.Annotations, WaitingAnnotation)
	annotate(vm, StampAnnotation, stamp.Format(time.RFC3339Nano))
	if !changed {
		return nil, nil
	}
	if !a.Ready(ctx) {
		return wait(vm, wishes), nil
	}
	granted, err := a.take(VMOwner(vm.Namespace, vm.Name), stamp, wishes, dryRun)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", notAllocated, err)
	}
	for i, g := range granted {
		if nic := &all[at[i]]; nic.MacAddress == "" {
			nic.MacAddress = g.String()
		}
	}
	return nil, nil
}

// wait admits a machine without addresses when it needs any.
func wait(vm *virtv1.VirtualMachine, wishes []macpool.Wish) []string {
	for _, w := range wishes {
		if w.MAC == 0 {
			annotate(vm, WaitingAnnotation, "true")
			return []string{warning}
		}
	}
	return nil
}

func waits(vm *virtv1.VirtualMachine) bool { return vm.Annotations[WaitingAnnotation] != "" }

func (a *Assigner) take(owner macpool.Owner, stamp time.Time, wishes []macpool.Wish, dryRun bool) ([]macpool.Address, error) {
	if dryRun {
		return a.Pool.Preview(owner, wishes)
	}
	return a.Pool.Take(owner, stamp, wishes)
}

// distinct refuses one address on two NICs of an object.
func distinct(wishes []macpool.Wish) error {
	first := map[macpool.Address]string{}
	for _, w := range wishes {
		if w.MAC == 0 {
			continue
		}
		if other, twice := first[w.MAC]; twice {
			return fmt.Errorf("duplicate MAC address %s found on interfaces: %s and %s", w.MAC, other, w.NIC)
		}
		first[w.MAC] = w.NIC
	}
	return nil
}

// needsAddress names the NICs that get an address when the user gives none: those behind masquerade and those on secondary
// networks. Others on the pod network have the address of their pod's or port's interface.
func needsAddress(vm *virtv1.VirtualMachine) map[string]bool {
	secondary := map[string]bool{}
	for _, n := range vm.Spec.Template.Spec.Networks {
		secondary[n.Name] = n.Multus != nil
	}
	names := map[string]bool{}
	for _, nic := range interfaces(vm) {
		if nic.Masquerade != nil || secondary[nic.Name] {
			names[nic.Name] = true
		}
	}
	return names
}

func interfaces(vm *virtv1.VirtualMachine) []virtv1.Interface {
	if vm == nil || vm.Spec.Template == nil {
		return nil
	}
	return vm.Spec.Template.Spec.Domain.Devices.Interfaces
}

func annotation(vm *virtv1.VirtualMachine, key string) string {
	if vm == nil {
		return ""
	}
	return vm.Annotations[key]
}

func annotate(vm *virtv1.VirtualMachine, key, value string) {
	if vm.Annotations == nil {
		vm.Annotations = map[string]string{}
	}
	vm.Annotations[key] = value
}

// Normalize gives an address in its usual form, empty when it is none.
func Normalize(mac string) string {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return ""
	}
	return hw.String()
}
