package nodenet

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/knftables"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/ovs"
	"patchbay/internal/settings"
)

// Ports is what this package asks of the node's Open vSwitch; *ovs.Client is one.
type Ports interface {
	Plug(ctx context.Context, p ovs.Port) error
}

// Config is what the node's network needs.
type Config struct {
	Settings settings.Settings
	Node     string        // name of the Kubernetes node
	Reader   client.Reader // knows this node's pods only
	Ports    Ports
	Guard    link.Guard
	NFT      knftables.Interface // of family inet and Table
	AnyNetns bool                // do not insist on being in the node's network namespace
	Log      *slog.Logger
}

// Network keeps the node's side of the overlay as the API objects say. Its methods must not be called concurrently.
type Network struct {
	Config
	table  table
	health health
	ready  chan struct{}

	audited time.Time
	placed  bool
	failed  chan error // what the agent must not go on after
}

// New returns a network that has done nothing yet.
func New(c Config) *Network {
	return &Network{Config: c, table: table{nft: c.NFT}, health: health{log: c.Log}, ready: make(chan struct{}), failed: make(chan error, 1)}
}

// Ready is closed once the node's side of the overlay stood for the first time.
func (n *Network) Ready() <-chan struct{} { return n.ready }

// Close ends what needs a running agent: the health check servers. Everything else stays.
func (n *Network) Close() { n.health.close() }

// Apply reads the objects and makes everything so. It writes only what differs, and may be repeated at any time.
func (n *Network) Apply(ctx context.Context) error {
	var node corev1.Node
	if err := n.Reader.Get(ctx, client.ObjectKey{Name: n.Node}, &node); err != nil {
		return fmt.Errorf("read node %s: %w", n.Node, err)
	}
	if err := n.checkPlace(&node); err != nil {
		return err
	}
	plan, err := NewPlan(n.Settings, &node)
	if err != nil {
		return err
	}
	services, err := n.services(ctx)
	if err != nil {
		return err
	}
	var pods corev1.PodList
	if err := n.Reader.List(ctx, &pods); err != nil {
		return fmt.Errorf("list this node's pods: %w", err)
	}
	if err := n.applyDevice(ctx, plan); err != nil {
		return err
	}
	begun := time.Now()
	changed, err := n.table.apply(ctx, Rules(plan, services, readHostPorts(pods.Items), lockedLegs(pods.Items)))
	if err != nil {
		return err
	}
	if changed {
		n.Log.Info("service rules written", "services", len(services), "took", time.Since(begun).Round(time.Millisecond))
	}
	n.markReady(plan)
	return n.health.apply(ctx, services)
}

func (n *Network) markReady(p Plan) {
	select {
	case <-n.ready:
	default:
		n.Log.Info("node network stands", "device", ManagementDevice, "ips", p.IPs)
		close(n.ready)
	}
}

func (n *Network) services(ctx context.Context) ([]service, error) {
	var services corev1.ServiceList
	if err := n.Reader.List(ctx, &services); err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	var slices discoveryv1.EndpointSliceList
	if err := n.Reader.List(ctx, &slices); err != nil {
		return nil, fmt.Errorf("list endpoint slices: %w", err)
	}
	var namespaces corev1.NamespaceList
	if err := n.Reader.List(ctx, &namespaces); err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	return readServices(n.Node, services.Items, slices.Items, tenantNamespaces(namespaces.Items)), nil
}

func (n *Network) applyDevice(ctx context.Context, p Plan) error {
	if err := n.Ports.Plug(ctx, p.port()); err != nil {
		return err
	}
	err := link.Set(
		link.Setting{Key: "ipv4/ip_forward", Value: "1"},
		link.Setting{Key: "ipv6/conf/all/forwarding", Value: "1"},
	)
	if err != nil {
		return err
	}
	port := link.HostPort{Name: ManagementDevice, MTU: p.MTU, IPs: p.IPs}
	if port.MAC, err = net.ParseMAC(p.MAC); err != nil {
		return err
	}
	for _, dest := range p.Routes {
		if gateway, ok := p.gateway(dest.Addr()); ok {
			port.Routes = append(port.Routes, link.Route{Dest: dest, Via: gateway})
		}
	}
	if err := link.ConfigureHostPort(n.Guard, port); err != nil {
		return fmt.Errorf("management port: %w", err)
	}
	return nil
}

// audit looks from time to time for changes that no notification tells of: rules that somebody else removed.
func (n *Network) audit(ctx context.Context) {
	if time.Since(n.audited) >= auditInterval {
		n.table.forgetIfChanged(ctx)
		n.audited = time.Now()
	}
}
