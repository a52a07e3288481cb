package topology

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"patchbay/internal/ovn/nb"
)

// MaxAffinitySeconds is the longest time for which OVN 23.03 remembers which backend a client had. Kubernetes allows 86400;
// a longer time is served by hashing the client's address instead, which is affinity without end.
const MaxAffinitySeconds = 65535

var (
	// hairpinSources are the addresses that a pod sees itself under when it reaches itself through a service.
	hairpinSources = []netip.Addr{netip.MustParseAddr("169.254.169.5"), netip.MustParseAddr("fd69::5")}
	// LocalNodeAddresses stand, on each node's switch, for "the endpoints of this node": a node sends a NodePort whose
	// externalTrafficPolicy is Local to <address>:<nodePort>, through its management port and with the client's address kept.
	LocalNodeAddresses = []netip.Addr{netip.MustParseAddr("169.254.169.3"), netip.MustParseAddr("fd69::3")}
)

// Service is a Kubernetes service with its endpoints, named ports resolved.
type Service struct {
	Namespace string
	Name      string
	// ClusterIPs has at most one address per family; empty or "None" services have no rows.
	ClusterIPs []netip.Addr
	// ExternalIPs are spec.externalIPs and the load balancer's ingress addresses.
	ExternalIPs []netip.Addr
	// InternalLocal and ExternalLocal are the traffic policies Local.
	InternalLocal bool
	ExternalLocal bool
	// AffinitySeconds is 0 without session affinity.
	AffinitySeconds int
	// AnyReadiness takes endpoints whether they are ready or not (publishNotReadyAddresses).
	AnyReadiness bool
	Ports        []ServicePort
}

// ServicePort is one port of a service.
type ServicePort struct {
	Protocol  string // tcp, udp, sctp
	Port      uint16
	NodePort  uint16 // 0: none
	Endpoints []Endpoint
}

// Endpoint is one address behind a service port.
type Endpoint struct {
	Address netip.AddrPort
	Node    string // "" when unknown
	State   EndpointState
}

// EndpointState says which traffic an endpoint may get.
type EndpointState int

const (
	Ready              EndpointState = iota
	ServingTerminating               // used while there is no ready one
	NotReady
)

// LocalToNodes tells whether the service has rows per node.
func (s Service) LocalToNodes() bool {
	return s.InternalLocal || s.ExternalLocal && slices.ContainsFunc(s.Ports, func(p ServicePort) bool { return p.NodePort != 0 })
}

// ServiceRows are the load balancers of a service: one per protocol for the whole cluster, and one per protocol and node
// for the addresses that must stay on their node. The list of nodes is only used when LocalToNodes.
func ServiceRows(s Service, nodes []string) []nb.Row {
	var rows []nb.Row
	for _, protocol := range []string{"tcp", "udp", "sctp"} {
		if vips := s.clusterVIPs(protocol); len(vips) > 0 {
			group := nb.Ref{Table: nb.LoadBalancerGroupTable, Key: ServiceGroup}
			rows = append(rows, s.loadBalancer(protocol, "cluster", vips).In(group, "load_balancer"))
		}
		if !s.LocalToNodes() {
			continue
		}
		for _, node := range nodes {
			if vips := s.nodeVIPs(protocol, node); len(vips) > 0 {
				nodeSwitch := nb.Ref{Table: nb.LogicalSwitchTable, Key: node}
				rows = append(rows, s.loadBalancer(protocol, "node_switch_"+node, vips).In(nodeSwitch, "load_balancer"))
			}
		}
	}
	return rows
}

// clusterVIPs are the addresses that mean the same on every node. From inside the cluster an external address reaches every
// endpoint, whatever the external policy says.
func (s Service) clusterVIPs(protocol string) map[string]string {
	vips := map[string]string{}
	for _, port := range s.Ports {
		if port.Protocol != protocol {
			continue
		}
		addresses := s.ExternalIPs
		if !s.InternalLocal {
			addresses = slices.Concat(s.ClusterIPs, s.ExternalIPs)
		}
		for _, vip := range addresses {
			vips[netip.AddrPortFrom(vip, port.Port).String()] = s.backends(port, vip, "")
		}
	}
	return vips
}

// nodeVIPs are the addresses that mean the endpoints of one node.
func (s Service) nodeVIPs(protocol, node string) map[string]string {
	vips := map[string]string{}
	for _, port := range s.Ports {
		if port.Protocol != protocol {
			continue
		}
		if s.InternalLocal {
			for _, vip := range s.ClusterIPs {
				vips[netip.AddrPortFrom(vip, port.Port).String()] = s.backends(port, vip, node)
			}
		}
		if s.ExternalLocal && port.NodePort != 0 {
			for _, vip := range s.localNodeAddresses() {
				vips[netip.AddrPortFrom(vip, port.NodePort).String()] = s.backends(port, vip, node)
			}
		}
	}
	return vips
}

func (s Service) localNodeAddresses() []netip.Addr {
	var addresses []netip.Addr
	for _, vip := range s.ClusterIPs {
		for _, a := range LocalNodeAddresses {
			if a.Is4() == vip.Is4() {
				addresses = append(addresses, a)
			}
		}
	}
	return addresses
}

// backends lists the endpoints for one address: of its family, of one node when given (that filter comes before the
// fallback), the ready ones or else those that still serve while they terminate. An empty list stays, so that OVN
// refuses the connection instead of letting it run into a timeout.
func (s Service) backends(port ServicePort, vip netip.Addr, node string) string {
	var byState [NotReady + 1][]string
	for _, e := range port.Endpoints {
		if e.Address.Addr().Is4() == vip.Is4() && (node == "" || e.Node == node) {
			byState[e.State] = append(byState[e.State], e.Address.String())
		}
	}
	chosen := byState[Ready]
	switch {
	case s.AnyReadiness:
		chosen = slices.Concat(byState[Ready], byState[ServingTerminating], byState[NotReady])
	case len(chosen) == 0:
		chosen = byState[ServingTerminating]
	}
	slices.Sort(chosen)
	return strings.Join(slices.Compact(chosen), ",")
}

func (s Service) loadBalancer(protocol, scope string, vips map[string]string) nb.Row {
	var hairpin []string
	for _, a := range hairpinSources {
		hairpin = append(hairpin, a.String())
	}
	lb := &nb.LoadBalancer{
		Name:     "Service_" + s.Namespace + "/" + s.Name + "_" + strings.ToUpper(protocol) + "_" + scope,
		Protocol: &protocol,
		Vips:     vips,
		Options:  map[string]string{"reject": "true", "hairpin_snat_ip": strings.Join(hairpin, " ")},
		ExternalIDs: map[string]string{
			"k8s.ovn.org/kind": "Service", "k8s.ovn.org/owner": s.Namespace + "/" + s.Name,
		},
	}
	if protocol == "udp" {
		// A UDP client keeps its port; without a flush it would talk to a removed backend for as long as it goes on. TCP
		// connections to a terminating pod must live on.
		lb.Options["ct_flush"] = "true"
	}
	switch {
	case s.AffinitySeconds > MaxAffinitySeconds:
		lb.SelectionFields = []nb.LoadBalancerSelectionFields{nb.LoadBalancerSelectionFieldsIPSrc, nb.LoadBalancerSelectionFieldsIPDst}
	case s.AffinitySeconds > 0:
		lb.Options["affinity_timeout"] = strconv.Itoa(s.AffinitySeconds)
	}
	return nb.NewRow(nb.LoadBalancerTable, lb.Name, lb)
}
