// Package whereabouts gives addresses of networks of other CNI plugins, from ranges that span the cluster: it answers as the IPAM plugin
// "whereabouts", whose configuration and objects it reads and writes. Who has which address is kept in the API server, where nodes
// agree by compare and swap. The package must not take an address away that nobody gives back; that is the controller's.
package whereabouts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	wbv1alpha1 "patchbay/api/whereabouts/v1alpha1"
	"patchbay/internal/agent/cni/shim"
)

// Type is the name of the plugin in configurations.
const Type = "whereabouts"

// Config is what a plugin needs.
type Config struct {
	Store Store
	// Socket is where the plugin is served.
	Socket string
	// Owner says for whom a pod's addresses are kept.
	Owner func(ctx context.Context, pod shim.Pod) (wbv1alpha1.Owner, error)
	// Warn tells people that a pod gets no address.
	Warn func(ctx context.Context, pod shim.Pod, message string)
}

// Plugin gives addresses out and takes them back. Calls may be concurrent.
type Plugin struct{ Config }

// New returns a plugin.
func New(c Config) *Plugin { return &Plugin{c} }

// Prepare is for delegate.Config.Prepare: the program is told where its requests are answered.
func (p *Plugin) Prepare(_ context.Context, plugin map[string]any) error {
	if ipam, ok := plugin["ipam"].(map[string]any); ok && ipam["type"] == Type {
		ipam["socket"] = p.Socket
	}
	return nil
}

// Do carries out one CNI request.
func (p *Plugin) Do(ctx context.Context, r shim.Request) (json.RawMessage, error) {
	switch r.Command {
	case "ADD", "DEL", "CHECK":
	default:
		return nil, nil // STATUS and GC: there is nothing to do
	}
	s, err := parse(r.Config)
	if err != nil {
		return nil, &shim.Error{Code: shim.CodeInvalidConfig, Msg: err.Error()}
	}
	switch r.Command {
	case "DEL":
		return nil, p.del(ctx, s, r)
	case "CHECK":
		return nil, p.check(ctx, s, r)
	}
	return p.add(ctx, s, r)
}

func (p *Plugin) add(ctx context.Context, s settings, r shim.Request) (json.RawMessage, error) {
	pod := r.Pod()
	if pod.Name == "" || r.ContainerID == "" || r.IfName == "" {
		return nil, &shim.Error{Code: shim.CodeInvalidEnvironment, Msg: "CNI_ARGS must name the pod, and CNI_CONTAINERID and CNI_IFNAME its interface"}
	}
	owner, err := p.Owner(ctx, pod)
	if err != nil {
		return nil, err
	}
	h := holder{owner, r.ContainerID, r.IfName}
	given, err := p.take(ctx, s, h)
	if err != nil {
		var full *FullError
		if errors.As(err, &full) && p.Warn != nil {
			p.Warn(ctx, pod, full.Error())
		}
		return nil, errors.Join(err, p.giveBack(context.WithoutCancel(ctx), s, h))
	}
	return answer(s, given)
}

// take gets an address of every range.
func (p *Plugin) take(ctx context.Context, s settings, h holder) ([]netip.Prefix, error) {
	var given []netip.Prefix
	for _, r := range s.ranges {
		if s.gateway.IsValid() {
			r.leftOut = append(slices.Clip(r.leftOut), netip.PrefixFrom(s.gateway, s.gateway.BitLen()))
		}
		a, err := p.Store.take(ctx, s, r, h)
		if err != nil {
			return nil, err
		}
		given = append(given, netip.PrefixFrom(a, r.subnet.Bits()))
	}
	return given, nil
}

// del gives back what the sandbox's interface has. The addresses of a virtual machine stay with it: its next pod takes them over.
func (p *Plugin) del(ctx context.Context, s settings, r shim.Request) error {
	return p.giveBack(ctx, s, holder{container: r.ContainerID, iface: r.IfName})
}

func (p *Plugin) giveBack(ctx context.Context, s settings, h holder) error {
	var errs []error
	for _, r := range s.ranges {
		errs = append(errs, p.Store.giveBack(ctx, s, r, h))
	}
	return errors.Join(errs...)
}

func (p *Plugin) check(ctx context.Context, s settings, r shim.Request) error {
	for _, one := range s.ranges {
		if err := p.Store.check(ctx, s, one, holder{container: r.ContainerID, iface: r.IfName}); err != nil {
			return err
		}
	}
	return nil
}

func answer(s settings, given []netip.Prefix) (json.RawMessage, error) {
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: s.routes, DNS: s.dns}
	for _, a := range given {
		result.IPs = append(result.IPs, ipConfig(a, s.gateway))
	}
	for _, f := range s.fixed {
		result.IPs = append(result.IPs, ipConfig(f.address, f.gateway))
	}
	var converted cnitypes.Result = result
	converted, err := converted.GetAsVersion(s.version)
	if err != nil {
		return nil, fmt.Errorf("answer in CNI version %s: %w", s.version, err)
	}
	return json.Marshal(converted)
}

// ipConfig is an address with its gateway, if that is of its family.
func ipConfig(a netip.Prefix, gateway netip.Addr) *current.IPConfig {
	c := &current.IPConfig{Address: net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
	if gateway.IsValid() && gateway.Is4() == a.Addr().Is4() {
		c.Gateway = gateway.AsSlice()
	}
	return c
}
