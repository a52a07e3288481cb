package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"

	"patchbay/internal/agent/guestnet"
	"patchbay/internal/agent/masquerade"
)

// Masquerade wires NICs with the masquerade binding.
type Masquerade struct {
	applier *masquerade.Applier
	log     *slog.Logger
}

// NewMasquerade checks that the node can do what the binding needs.
func NewMasquerade(log *slog.Logger) (*Masquerade, error) {
	applier, err := masquerade.NewApplier()
	if err != nil {
		return nil, err
	}
	return &Masquerade{applier: applier, log: log}, nil
}

// istioInject asks for a sidecar when its value is true in any spelling.
const istioInject = "sidecar.istio.io/inject"

// Open implements Wirer.
func (w *Masquerade) Open(ctx context.Context, nic NIC) (*Wired, error) {
	plan, err := planMasquerade(nic)
	if err != nil {
		return nil, err
	}
	files, err := w.applier.Open(ctx, nic.Pod.Netns, plan)
	if errors.Is(err, masquerade.ErrBusy) {
		return nil, NotYet(err)
	}
	if err != nil {
		return nil, err
	}
	wired, err := w.serve(nic, plan)
	if err != nil {
		masquerade.CloseAll(files)
		return nil, err
	}
	wired.Files = files
	return wired, nil
}

// Refresh implements Wirer.
func (w *Masquerade) Refresh(ctx context.Context, nic NIC) (*Wired, error) {
	plan, err := planMasquerade(nic)
	if err != nil {
		return nil, err
	}
	if err := w.applier.Refresh(ctx, nic.Pod.Netns, plan); err != nil {
		return nil, err
	}
	return w.serve(nic, plan)
}

func planMasquerade(nic NIC) (masquerade.Plan, error) {
	if nic.Network.Pod == nil {
		return masquerade.Plan{}, fmt.Errorf("interface %q: masquerade joins the pod network only; use bridge on other networks", nic.Interface.Name)
	}
	uplink, err := nic.uplink()
	if err != nil {
		return masquerade.Plan{}, err
	}
	return masquerade.NewPlan(masquerade.Request{
		Uplink:    uplink,
		Interface: nic.Interface,
		Network:   nic.Network.Pod,
		Mesh:      strings.EqualFold(nic.VMI.Annotations[istioInject], "true"),
		Queues:    nic.Queues,
	})
}

// serve opens the servers that tell the guest its addresses.
func (w *Masquerade) serve(nic NIC, plan masquerade.Plan) (*Wired, error) {
	config, err := addressesOf(nic, plan)
	if err != nil {
		return nil, err
	}
	uplink, err := nic.uplink()
	if err != nil {
		return nil, err
	}
	server, err := guestnet.Listen(nic.Pod.Netns, config)
	if err != nil {
		return nil, err
	}
	return &Wired{
		MAC: nic.MAC, MTU: plan.MTU, Offloads: true,
		IPs:          masquerade.PodIPs(uplink),
		PodInterface: plan.Uplink,
		Serve:        func(ctx context.Context) { keepServing(ctx, w.log, server, nic.Pod.Netns, config) },
		Dial: func(ctx context.Context, network string, port uint16) (net.Conn, error) {
			// The inner addresses are not bound to the list of ports, whose purpose is to close the guest to the pod network.
			return dialEach(plan.Guests(), dialIn(ctx, nic.Pod.Netns, network, port))
		},
		Close: server.Close,
	}, nil
}

// addressesOf is what the guest is told.
func addressesOf(nic NIC, plan masquerade.Plan) (guestnet.Config, error) {
	options, err := guestnet.NewOptions(nic.Interface.DHCPOptions)
	if err != nil {
		return guestnet.Config{}, fmt.Errorf("interface %q: %w", nic.Interface.Name, err)
	}
	c := guestnet.Config{Device: plan.Device, MTU: plan.MTU, Hostname: nic.Hostname, DNS: nic.DNS}
	if p := plan.V4; p != nil {
		gateway := p.Gateway.Addr()
		c.V4 = &guestnet.V4{Server: gateway, Guest: netip.PrefixFrom(p.Guest, p.Gateway.Bits()), Router: gateway, Options: options}
	}
	if p := plan.V6; p != nil {
		c.V6 = &guestnet.V6{Guest: p.Guest, Prefix: p.Gateway, MAC: masquerade.GatewayMAC}
	}
	return c, nil
}
