package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/machinepod"
	"patchbay/internal/netconf"
	"patchbay/internal/network/attach"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// attached is a pod's connection to the networks beside the default one.
type attached struct {
	entries map[string]podnetworks.Network // of its annotation, without the default network
	tenant  bool                           // its primary network is a tenant's
	// err is what it cannot have yet.
	err error
}

// attachPod gives a pod what it asks for beside the default network. What it cannot have does not keep it from the rest; whether
// the rest is enough, the caller decides.
func (n *Network) attachPod(ctx context.Context, pod *corev1.Pod, known map[string]podnetworks.Network) (attached, error) {
	facts, err := n.facts(ctx, pod, known)
	if err != nil {
		return attached{}, err
	}
	out := attached{entries: map[string]podnetworks.Network{}, tenant: facts.Tenant}
	wishes, problem := n.tenants.plan(facts)
	var errs []error
	if problem != nil {
		errs = append(errs, &wishError{problem})
	}
	keep := map[string]bool{}
	for _, w := range wishes {
		keep[w.Key] = true
		had := entryOf(known, w.Key)
		if had != nil && facts.VMI == nil {
			w.NIC = nicOf(pod, had)
		}
		a, err := n.attach(ctx, pod, w, had)
		switch {
		case err != nil && had != nil:
			out.entries[w.Key] = *had // it may run with it; taking it away would cut it off
			fallthrough
		case err != nil:
			errs = append(errs, fmt.Errorf("failed to assign pod addresses for %s/%s: %w", pod.Namespace, pod.Name, err))
			continue
		}
		n.connect(&out, pod, a)
	}
	if problem == nil {
		n.freed(ctx, n.tenants.detach(pod, keep))
	} else {
		n.keepEntries(&out, pod, known)
	}
	out.err = errors.Join(errs...)
	return out, nil
}

// facts are what decides about a pod. A pod that was on the default network first stays there: a namespace's label counts for
// the pods that come after it.
func (n *Network) facts(ctx context.Context, pod *corev1.Pod, known map[string]podnetworks.Network) (attach.Facts, error) {
	f := attach.Facts{Pod: pod, ManagedTap: n.ManagedTap}
	had, annotated := known[podnetworks.Default]
	if !annotated || had.Role != podnetworks.Primary {
		tenant, err := n.tenantNamespace(ctx, pod.Namespace)
		if err != nil {
			return f, err
		}
		f.Tenant = tenant
	}
	machine, ok := machinepod.Of(pod)
	if !ok {
		return f, nil
	}
	vmi := &virtv1.VirtualMachineInstance{}
	err := n.client.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: machine.Name}, vmi)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return f, fmt.Errorf("read virtual machine instance %s/%s: %w", pod.Namespace, machine.Name, err)
	case err == nil && vmi.UID == machine.UID:
		f.VMI = vmi
	case !annotated:
		return f, &attach.Waiting{On: attach.OnMachine(pod.Namespace, machine.Name), Err: fmt.Errorf("virtual machine instance %s/%s is not known", pod.Namespace, machine.Name)}
	}
	return f, nil
}

func entryOf(known map[string]podnetworks.Network, key string) *podnetworks.Network {
	if e, ok := known[key]; ok {
		return &e
	}
	return nil
}

// nicOf is the machine's interface that an entry of a pod's annotation was written for.
func nicOf(pod *corev1.Pod, entry *podnetworks.Network) string {
	machine, _ := machinepod.Of(pod)
	nic, ours := strings.CutPrefix(entry.Port, topology.NICPort(pod.Namespace, machine.Name, ""))
	if !entry.Tap || !ours {
		return ""
	}
	return nic
}

// attach gives a pod one interface's addresses: those it has, those its annotation says, those of its claim, or new ones.
func (n *Network) attach(ctx context.Context, pod *corev1.Pod, w attach.Wish, had *podnetworks.Network) (attachment, error) {
	a, has := n.tenants.has(pod, w.Key)
	has = has && a.Network == w.Network && a.NIC == w.NIC
	if has && (w.Claim == "" || a.claimed) {
		return a, nil
	}
	var claim *ipamclaimsv1alpha1.IPAMClaim
	var err error
	if w.Claim != "" {
		claim, err = n.claimFor(ctx, pod, w)
		switch {
		case claim == nil && has && had != nil:
			return a, nil // somebody took the claim from a pod that runs
		case claim == nil:
			return attachment{}, err
		}
	}
	if err == nil {
		a, err = n.tenants.take(pod, w, had)
	}
	if err != nil && had != nil && pod.Status.PodIP == "" {
		a, err = n.tenants.take(pod, w, nil) // nobody runs with what the annotation says
	}
	if claim == nil {
		return a, err
	}
	if err != nil {
		n.failClaim(ctx, claim, err)
		return attachment{}, err
	}
	network, _ := n.tenants.network(w.Network)
	err = n.recordClaim(ctx, pod, claim, withLengths(network, a.given.IPs), a.given.MAC)
	switch {
	case apierrors.IsConflict(err):
		err = &attach.Waiting{On: attach.OnClaim(pod.Namespace, w.Claim), Err: err}
	case err == nil:
		n.tenants.claimed(pod, w.Key)
	}
	return a, err
}

// connect adds the entry of one interface.
func (n *Network) connect(out *attached, pod *corev1.Pod, a attachment) {
	if network, ok := n.tenants.network(a.Network); ok {
		out.entries[a.Key] = n.entry(pod, a, network)
	}
}

// setPodRows makes all ports that are the pod's own, and those of the machine that it runs.
func (n *Network) setPodRows(ctx context.Context, pod *corev1.Pod, network podnetworks.Network) error {
	n.holdPod(pod, network)
	rows := topology.PodRows(topology.Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Node: pod.Spec.NodeName, Network: network,
		OpenPorts: n.openPorts(pod),
	})
	for _, a := range n.tenants.attachments(pod) {
		on, ok := n.tenants.network(a.Network)
		if a.NIC != "" || !ok {
			continue
		}
		rows = append(rows, topology.AttachmentRows(topology.Attachment{
			Key: a.Key, Namespace: pod.Namespace, Pod: pod.Name, UID: pod.UID, Node: pod.Spec.NodeName,
			Network: on, MAC: a.given.MAC, IPs: withLengths(on, a.given.IPs),
		})...)
	}
	n.Rows.Set(podOwner(client.ObjectKeyFromObject(pod)), rows)
	if machine, ok := machinepod.Of(pod); ok {
		return n.placeMachine(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: machine.Name})
	}
	return nil
}

// entry is everything that follows from an interface's addresses.
func (n *Network) entry(pod *corev1.Pod, a attachment, network topology.Network) podnetworks.Network {
	e := podnetworks.Network{
		IPs: withLengths(network, a.given.IPs), MAC: a.given.MAC, MTU: network.MTU, Role: a.Role, Name: network.Name,
		Interface: a.Interface, Gateways: a.Gateways, Port: topology.AttachmentPort(a.Key, pod.Namespace, pod.Name),
	}
	if a.NIC != "" {
		machine, _ := machinepod.Of(pod)
		e.Port, e.Tap = topology.NICPort(pod.Namespace, machine.Name, a.NIC), true
	}
	if len(network.Subnets) == 0 {
		e.IPs = a.Static
	}
	switch {
	case network.Topology == netconf.Layer3:
		n.route(&e, network, pod.Spec.NodeName)
	case network.HasRouter():
		e.Gateways = network.Gateways
		e.Routes = n.serviceRoutes(network.Gateways)
		e.LinkLocalGateway = linkLocal(podnetworks.MAC(network.Gateways[0]), network.Gateways)
	}
	return e
}

// serviceRoutes lead to services also where somebody gives the pod another default route.
func (n *Network) serviceRoutes(gateways []netip.Addr) []podnetworks.Route {
	var routes []podnetworks.Route
	for _, gateway := range gateways {
		for _, dest := range n.Settings.ServiceCIDRs {
			if dest.Addr().Is4() == gateway.Is4() {
				routes = append(routes, podnetworks.Route{Dest: dest, NextHop: gateway})
			}
		}
	}
	return routes
}

// linkLocal is the address that a router with an IPv6 address advertises itself by.
func linkLocal(mac net.HardwareAddr, gateways []netip.Addr) netip.Addr {
	for _, g := range gateways {
		if g.Is6() {
			return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
		}
	}
	return netip.Addr{}
}

// keepEntries keeps what a pod has by definitions that cannot be understood at present.
func (n *Network) keepEntries(out *attached, pod *corev1.Pod, known map[string]podnetworks.Network) {
	for key, entry := range known {
		if _, done := out.entries[key]; done || key == podnetworks.Default {
			continue
		}
		if a, ok := n.tenants.has(pod, key); ok {
			n.connect(out, pod, a)
		} else {
			out.entries[key] = entry
		}
	}
}

// restoreAttachments books what a pod's annotation says of networks that are there.
func (n *Network) restoreAttachments(ctx context.Context, pod *corev1.Pod) {
	known, err := podnetworks.ParsePod(pod.Annotations)
	if err != nil || len(known) < 2 || !connected(pod) {
		return
	}
	facts, err := n.facts(ctx, pod, known)
	if err != nil {
		n.Log.Warn("pod's networks cannot be restored", "pod", client.ObjectKeyFromObject(pod), "error", err)
		return
	}
	wishes, _ := n.tenants.plan(facts)
	for _, w := range wishes {
		had := entryOf(known, w.Key)
		if had == nil {
			continue
		}
		if facts.VMI == nil {
			w.NIC = nicOf(pod, had)
		}
		if err := n.tenants.restore(pod, w, had); err != nil {
			n.Log.Warn("pod's addresses cannot be restored", "pod", client.ObjectKeyFromObject(pod), "network", w.Network, "error", err)
		}
	}
}

// lockedRoutes are all that a pod reaches by the default network when its primary network is a tenant's.
func (n *Network) lockedRoutes(ips []netip.Prefix) []podnetworks.Route {
	var routes []podnetworks.Route
	for _, ip := range ips {
		for _, list := range [][]netip.Prefix{n.Settings.ClusterCIDRs, netconf.ClusterJoin} {
			for _, dest := range list {
				if dest.Addr().Is4() == ip.Addr().Is4() {
					routes = append(routes, podnetworks.Route{Dest: dest, NextHop: podnetworks.Gateway(ip)})
				}
			}
		}
	}
	return routes
}
