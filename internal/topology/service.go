package topology

import (
	"net/netip"
	"slices"
	"strings"

	"patchbay/internal/ovn/nb"
)

// hairpinSources are the addresses that a pod sees itself under when it reaches itself through a service.
const hairpinSources = "169.254.169.5 fd69::5"

// Service is a Kubernetes service with its endpoints, named ports resolved.
type Service struct {
	Namespace string
	Name      string
	// ClusterIPs has at most one address per family; empty or "None" services have no rows.
	ClusterIPs []netip.Addr
	// ExternalIPs are outside addresses that pods reach without leaving the overlay. From inside the cluster they mean every
	// endpoint, whatever the external traffic policy says. What comes from outside is the node's to translate.
	ExternalIPs []netip.Addr
	// InternalLocal is internalTrafficPolicy Local.
	InternalLocal bool
	// Affinity keeps a client with one endpoint, by its address.
	Affinity bool
	// AnyReadiness takes endpoints whether they are ready or not (publishNotReadyAddresses).
	AnyReadiness bool
	// ForTenants lets the networks of tenants use the service as well. Its endpoints must be outside the overlay.
	ForTenants bool
	Ports      []ServicePort
}

// ServicePort is one port of a service.
type ServicePort struct {
	Protocol  string // tcp, udp, sctp
	Port      uint16
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

// ServiceRows are the load balancers of a service: one per protocol for the whole cluster, and with internalTrafficPolicy
// Local one per protocol and node for the cluster IPs. The list of nodes matters only then.
func ServiceRows(s Service, nodes []string) []nb.Row {
	var rows []nb.Row
	for _, protocol := range []string{"tcp", "udp", "sctp"} {
		everywhere := s.ExternalIPs
		if !s.InternalLocal {
			everywhere = slices.Concat(s.ClusterIPs, s.ExternalIPs)
		}
		if vips := s.vips(protocol, everywhere, ""); len(vips) > 0 {
			group := nb.Ref{Table: nb.LoadBalancerGroupTable, Key: ServiceGroup}
			row := s.loadBalancer(protocol, "cluster", vips).In(group, "load_balancer")
			if s.ForTenants {
				row = row.In(nb.Ref{Table: nb.LoadBalancerGroupTable, Key: TenantServiceGroup}, "load_balancer")
			}
			rows = append(rows, row)
		}
		if !s.InternalLocal {
			continue
		}
		for _, node := range nodes {
			if vips := s.vips(protocol, s.ClusterIPs, node); len(vips) > 0 {
				nodeSwitch := nb.Ref{Table: nb.LogicalSwitchTable, Key: node}
				rows = append(rows, s.loadBalancer(protocol, "node_switch_"+node, vips).In(nodeSwitch, "load_balancer"))
			}
		}
	}
	return rows
}

// vips maps each address and port of a protocol to its endpoints, of one node when given.
func (s Service) vips(protocol string, addresses []netip.Addr, node string) map[string]string {
	vips := map[string]string{}
	for _, port := range s.Ports {
		if port.Protocol != protocol {
			continue
		}
		for _, vip := range addresses {
			vips[netip.AddrPortFrom(vip, port.Port).String()] = s.backends(port, vip, node)
		}
	}
	return vips
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
	lb := &nb.LoadBalancer{
		Name:     "Service_" + s.Namespace + "/" + s.Name + "_" + strings.ToUpper(protocol) + "_" + scope,
		Protocol: &protocol,
		Vips:     vips,
		Options:  map[string]string{"reject": "true", "hairpin_snat_ip": hairpinSources},
		ExternalIDs: map[string]string{
			"k8s.ovn.org/kind": "Service", "k8s.ovn.org/owner": s.Namespace + "/" + s.Name,
		},
	}
	if protocol == "udp" {
		// A UDP client keeps its port; without a flush it would talk to a removed backend for as long as it goes on. TCP
		// connections to a terminating pod must live on.
		lb.Options["ct_flush"] = "true"
	}
	if s.Affinity {
		// By hash, which has no timeout. OVN's affinity_timeout drops the first packet of every session (23.03 and later), and
		// on the userspace datapath all that follow: the repeated SYN is translated before it is looked up.
		lb.SelectionFields = []nb.LoadBalancerSelectionFields{nb.LoadBalancerSelectionFieldsIPSrc, nb.LoadBalancerSelectionFieldsIPDst}
	}
	return nb.NewRow(nb.LoadBalancerTable, lb.Name, lb)
}
