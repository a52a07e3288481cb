package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/bridged"
	"patchbay/internal/agent/guestnet"
	"patchbay/internal/agent/link"
	"patchbay/internal/agent/neighbours"
	"patchbay/internal/agent/podnet"
)

// Bridge wires NICs to interfaces that CNI plugins made in the pod: the guest takes over the interface's place on the network.
type Bridge struct {
	// Serve says that the guest is told the address that the plugin gave to the interface. Without it, as with managed taps,
	// that is left to the network.
	Serve bool
	Log   *slog.Logger
}

// Open implements Wirer.
func (w *Bridge) Open(ctx context.Context, nic NIC) (*Wired, error) {
	i, p, err := w.plan(nic)
	if err != nil {
		return nil, err
	}
	files, err := bridged.Open(ctx, nic.Pod.Netns, p)
	if errors.Is(err, link.ErrBusy) {
		return nil, NotYet(err)
	}
	if err != nil {
		return nil, err
	}
	wired, err := w.wired(nic, i, p)
	if err != nil {
		closeAll(files)
		return nil, err
	}
	wired.Files = files
	return wired, nil
}

// Refresh implements Wirer.
func (w *Bridge) Refresh(ctx context.Context, nic NIC) (*Wired, error) {
	i, p, err := w.plan(nic)
	if err != nil {
		return nil, err
	}
	if err := bridged.Refresh(ctx, nic.Pod.Netns, p); err != nil {
		return nil, err
	}
	return w.wired(nic, i, p)
}

// Leave implements Leaver: the pod has its interface back.
func (w *Bridge) Leave(_ context.Context, nic NIC) error {
	i, err := nic.uplink()
	if err != nil {
		return nil // the pod has left the network already, and the interface was given back before
	}
	return bridged.Restore(nic.Pod.Netns, i.Name)
}

func (w *Bridge) plan(nic NIC) (podnet.Interface, bridged.Plan, error) {
	i, err := nic.uplink()
	if err != nil {
		return i, bridged.Plan{}, err
	}
	if i.Tap {
		return i, bridged.Plan{}, fmt.Errorf("interface %q: its network has no device in the pod", nic.Interface.Name)
	}
	index := slices.IndexFunc(nic.VMI.Spec.Domain.Devices.Interfaces, func(other virtv1.Interface) bool { return other.Name == nic.Interface.Name })
	p := bridged.NewPlan(i, nic.Queues, max(index, 0), w.Serve)
	if nic.Interface.MacAddress != "" {
		p.Guest = nic.MAC
	}
	return i, p, nil
}

func (w *Bridge) wired(nic NIC, i podnet.Interface, p bridged.Plan) (*Wired, error) {
	wired := &Wired{MAC: i.MAC, MTU: p.MTU, Offloads: true, PodInterface: i.Name}
	if nic.Interface.MacAddress != "" {
		wired.MAC = nic.MAC
	}
	wired.Tap = neighbours.Tap{Netns: nic.Pod.Netns, Device: p.Tap, MAC: wired.MAC}
	for _, ip := range i.IPs {
		// The guest cannot learn an IPv6 address from here, so that it is not said to have it.
		if ip.Addr().Is4() || !w.Serve {
			wired.IPs = append(wired.IPs, ip.Addr())
		}
	}
	if !p.Server.IsValid() {
		return wired, nil
	}
	config, err := bridgedAddresses(nic, i, p, wired)
	if err != nil {
		return nil, err
	}
	server, err := guestnet.Listen(nic.Pod.Netns, config)
	if err != nil {
		return nil, err
	}
	wired.Serve = func(ctx context.Context) { keepServing(ctx, w.Log, server, nic.Pod.Netns, config) }
	wired.Close = server.Close
	return wired, nil
}

// bridgedAddresses is what the guest is told: the address and the routes that the plugin gave to the pod.
func bridgedAddresses(nic NIC, i podnet.Interface, p bridged.Plan, wired *Wired) (guestnet.Config, error) {
	options, err := guestnet.NewOptions(nic.Interface.DHCPOptions)
	if err != nil {
		return guestnet.Config{}, fmt.Errorf("interface %q: %w", nic.Interface.Name, err)
	}
	guest, _ := p.IPv4()
	v4 := &guestnet.V4{Server: p.Server.Addr(), Guest: guest, Client: wired.MAC, Options: options}
	for _, r := range i.AllRoutes() {
		if !r.Dest.Addr().Is4() {
			continue
		}
		if !v4.Router.IsValid() || r.Dest.Bits() == 0 {
			v4.Router = r.Via
		}
		v4.Routes = append(v4.Routes, guestnet.Route{To: r.Dest, Via: r.Via})
	}
	return guestnet.Config{Device: p.Bridge, MTU: p.MTU, Hostname: nic.Hostname, DNS: nic.DNS, V4: v4}, nil
}
