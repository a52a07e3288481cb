package link

import (
	"context"
	"fmt"

	"sigs.k8s.io/knftables"
)

// Shield is the guard of hosts that run OVS's userspace datapath. That datapath reads devices through packet sockets, so the
// node's kernel sees every frame too: it would answer a tenant's ARP for the node's addresses and deliver TCP to the node
// twice. A netdev ingress hook with policy drop comes after the packet socket took its copy and ends the kernel's.
type Shield struct{ rules knftables.Interface }

// NewShield returns the guard for devices of the namespace that the process runs in.
func NewShield() (*Shield, error) {
	rules, err := knftables.New(knftables.NetDevFamily, "patchbay")
	if err != nil {
		return nil, fmt.Errorf("prepare the ingress drop rules of OVS ports: %w", err)
	}
	return &Shield{rules}, nil
}

// PartialChecksums do not work: nothing in userspace OVS completes them.
func (*Shield) PartialChecksums() bool { return false }

// Cover must be called before the device is up. The rules vanish with the device.
func (s *Shield) Cover(ctx context.Context, device string) error {
	tx := s.rules.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{
		Name:     device,
		Type:     knftables.PtrTo(knftables.FilterType),
		Hook:     knftables.PtrTo(knftables.IngressHook),
		Priority: knftables.PtrTo(knftables.BaseChainPriority("0")),
		Policy:   knftables.PtrTo(knftables.DropPolicy),
		Device:   &device,
	})
	if err := s.rules.Run(ctx, tx); err != nil {
		return fmt.Errorf("keep the kernel from handling frames of %s: %w", device, err)
	}
	if err := TxChecksumOff(device); err != nil {
		return err
	}
	return Set(ForDevice(device, Setting{"ipv6/disable_ipv6", "1"})...)
}

// Uncover gives a device back to the node's kernel, once it is no longer plugged. A device that was not covered is no error.
func (s *Shield) Uncover(ctx context.Context, device string) error {
	tx := s.rules.NewTransaction()
	tx.Add(&knftables.Table{}) // deleting from a table that is not there would be an error
	tx.Add(&knftables.Chain{
		Name:     device,
		Type:     knftables.PtrTo(knftables.FilterType),
		Hook:     knftables.PtrTo(knftables.IngressHook),
		Priority: knftables.PtrTo(knftables.BaseChainPriority("0")),
		Policy:   knftables.PtrTo(knftables.DropPolicy),
		Device:   &device,
	})
	tx.Delete(&knftables.Chain{Name: device})
	if err := s.rules.Run(ctx, tx); err != nil {
		return fmt.Errorf("let the kernel handle frames of %s again: %w", device, err)
	}
	return nil
}
