// Package attach says what a pod asks for: which networks beside the default one it has to be on, by which interface, with which
// wished addresses, and whether its own device or a virtual machine's tap takes the port. It is pure; it must not give anything
// out.
package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/netconf"
	"patchbay/internal/network/catalog"
	"patchbay/internal/podnetworks"
)

// Facts are what decides about a pod.
type Facts struct {
	Pod *corev1.Pod
	// Tenant says that the pod's namespace has ovnv1.PrimaryNamespaceLabel.
	Tenant   bool
	Networks Networks
	// VMI is the machine whose pod this is; nil for other pods, and when it is gone.
	VMI *virtv1.VirtualMachineInstance
	// ManagedTap tells whether a binding plugin gives the guest the port itself.
	ManagedTap func(plugin string) bool
}

// Networks are what is known of networks; *catalog.Catalog is one.
type Networks interface {
	Definition(key string) (catalog.Definition, bool)
	Primary(namespace string) (key string, n netconf.Network, err error)
}

// Wish is one interface on one network.
type Wish struct {
	Key       string // of the pod's annotation
	Network   string // its name
	Role      podnetworks.Role
	Interface string // in the pod
	// NIC is the machine's interface that takes the port; empty when the pod's own device does.
	NIC string

	IPs []netip.Addr // wished of the network's own
	// Static are addresses that the pod brings along to a network that gives none.
	Static   []netip.Prefix
	MAC      net.HardwareAddr // wished; nil: any
	Gateways []netip.Addr     // wished default route on a secondary network
	Claim    string           // name of the IPAMClaim that the addresses belong to
}

// Waiting is an error that ends by itself when something else comes: On says what.
type Waiting struct {
	On  string
	Err error
}

func (w *Waiting) Error() string { return w.Err.Error() }
func (w *Waiting) Unwrap() error { return w.Err }

// What a pod can wait on.
func OnDefinition(key string) string      { return "definition/" + key }
func OnNamespace(namespace string) string { return "namespace/" + namespace }
func OnNetwork(name string) string        { return "network/" + name }
func OnClaim(namespace, name string) string {
	return "claim/" + namespace + "/" + name
}
func OnMachine(namespace, name string) string { return "machine/" + namespace + "/" + name }

func waiting(on, format string, args ...any) error {
	return &Waiting{On: on, Err: fmt.Errorf(format, args...)}
}

// Plan is everything a pod wishes. Wishes that cannot be understood or served yet are in the error; the others hold.
func Plan(f Facts) ([]Wish, error) {
	var wishes []Wish
	var errs []error
	if f.Tenant {
		w, err := f.primary()
		if err != nil {
			errs = append(errs, err)
		} else {
			wishes = append(wishes, w)
		}
	}
	selections, err := parseSelections(f.Pod.Annotations[nadv1.NetworkAttachmentAnnot], f.Pod.Namespace)
	if err != nil {
		errs = append(errs, err)
	}
	count := map[string]int{}
	ports := map[string]string{}
	for i, s := range selections {
		w, ours, err := f.secondary(i, s)
		switch {
		case err != nil:
			errs = append(errs, err)
		case ours:
			n := count[w.Key]
			count[w.Key]++
			if n > 0 {
				w.Key = fmt.Sprintf("%s/%d", w.Key, n)
			}
			if other, taken := ports[mangled(w.Key)]; taken {
				errs = append(errs, fmt.Errorf("definitions %s and %s cannot be in one pod: their ports would have one name", other, w.Key))
				continue
			}
			ports[mangled(w.Key)] = w.Key
			wishes = append(wishes, w)
		}
	}
	return wishes, errors.Join(errs...)
}

func mangled(key string) string { return strings.NewReplacer("-", ".", "/", ".").Replace(key) }

// primary is the interface on the namespace's primary network.
func (f Facts) primary() (Wish, error) {
	namespace := f.Pod.Namespace
	key, n, err := f.Networks.Primary(namespace)
	if errors.Is(err, catalog.ErrNoPrimary) {
		return Wish{}, waiting(OnNamespace(namespace), "namespace %s has the label %s but no primary network; "+
			"create a UserDefinedNetwork with role Primary there, or a ClusterUserDefinedNetwork that selects it, and the pod goes on", namespace, ovnv1.PrimaryNamespaceLabel)
	}
	if err != nil {
		return Wish{}, waiting(OnNamespace(namespace), "%w", err)
	}
	w := Wish{Key: key, Network: n.Name, Role: podnetworks.Primary, Interface: podnetworks.PrimaryInterface}
	if err := f.askPrimary(&w, n); err != nil {
		return Wish{}, err
	}
	return w, nil
}

// askPrimary reads what the pod, or the machine in it, wants of its primary network.
func (f Facts) askPrimary(w *Wish, n netconf.Network) error {
	request, err := f.defaultRequest()
	if err != nil {
		return err
	}
	if nic, ok := f.podNIC(); ok && f.tap(nic) {
		if n.Topology == netconf.Layer3 {
			return f.podsOnly(nic, n)
		}
		w.NIC = nic.Name
		if request.MAC == "" {
			request.MAC = nic.MacAddress
		}
		if len(request.IPs) == 0 {
			if request.IPs, err = machineAddresses(f.VMI, nic.Name); err != nil {
				return err
			}
		}
	}
	if w.MAC, err = parseMAC(request.MAC); err != nil {
		return err
	}
	if n.Persistent {
		w.Claim = request.Claim
	}
	if len(request.IPs) == 0 {
		return nil
	}
	if n.Topology != netconf.Layer2 {
		return fmt.Errorf("cannot allocate a static IP request with IPAM for pod %s/%s: layer2 topology is required, but network has topology %q", f.Pod.Namespace, f.Pod.Name, n.Topology)
	}
	w.IPs, err = insideSubnets(request.IPs, n)
	return err
}

// secondary is the interface that a selection asks for; ours is false when another CNI plugin makes it.
func (f Facts) secondary(i int, s selection) (w Wish, ours bool, err error) {
	key := s.Namespace + "/" + s.Name
	d, known := f.Networks.Definition(key)
	switch {
	case !known:
		return w, false, waiting(OnDefinition(key), "network attachment definition %s does not exist; create it, and the pod goes on", key)
	case errors.Is(d.Err, netconf.ErrOther):
		return w, false, nil
	case d.Err != nil:
		return w, false, waiting(OnDefinition(key), "network attachment definition %s cannot be used: %w", key, d.Err)
	case d.Network.IsDefault():
		return w, false, fmt.Errorf("network attachment definition %s is the cluster's default network, which every pod is on anyway; take it out of annotation %s", key, nadv1.NetworkAttachmentAnnot)
	case d.Network.Role == podnetworks.Primary:
		return w, false, fmt.Errorf("unexpected primary network %q specified with a NetworkSelectionElement %s", d.Network.Name, key)
	}
	w = Wish{Key: key, Network: d.Network.Name, Role: podnetworks.Secondary, Interface: s.Interface}
	if w.Interface == "" {
		w.Interface = fmt.Sprintf("net%d", i+1)
	}
	if nic, ok := f.networkNIC(s); ok && f.tap(nic) {
		if d.Network.Topology == netconf.Layer3 {
			return w, false, f.podsOnly(nic, d.Network)
		}
		w.NIC = nic.Name
	}
	return w, true, f.askSecondary(&w, s, d.Network)
}

func (f Facts) askSecondary(w *Wish, s selection, n netconf.Network) (err error) {
	if w.MAC, err = parseMAC(s.MAC); err != nil {
		return err
	}
	if n.Persistent {
		w.Claim = s.Claim
	}
	w.Gateways = s.Gateways
	if len(s.IPs) == 0 {
		return nil
	}
	if len(n.Subnets) > 0 {
		return fmt.Errorf("cannot allocate a static IP request with IPAM for pod %s/%s: only supported on primary networks", f.Pod.Namespace, f.Pod.Name)
	}
	for _, text := range s.IPs {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Addr().Is4In6() {
			return fmt.Errorf("requested address %q for network %s is not an address with a prefix length such as 192.168.1.7/24", text, w.Key)
		}
		w.Static = append(w.Static, p)
	}
	return nil
}

// podsOnly says why a machine's interface cannot be on a layer3 network.
func (f Facts) podsOnly(nic virtv1.Interface, n netconf.Network) error {
	return fmt.Errorf("interface %q of machine %s/%s cannot be on network %s: its topology is layer3, where an address belongs to a node and a machine could not move with it; "+
		"use a network of topology layer2, or the masquerade binding, which needs no address of the network in the guest", nic.Name, f.Pod.Namespace, f.VMI.Name, n.Name)
}
