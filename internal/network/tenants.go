package network

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/machinepod"
	"patchbay/internal/netconf"
	"patchbay/internal/network/attach"
	"patchbay/internal/network/catalog"
	"patchbay/internal/network/ipam"
	"patchbay/internal/network/policy"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
	"patchbay/internal/topology"
)

// tenants is what the controllers know together of the networks beside the default one: the networks, their addresses, and who
// is on them.
type tenants struct {
	mu        sync.Mutex
	catalog   *catalog.Catalog
	spaces    map[string]catalog.Space   // by network
	configs   map[string]netconf.Network // that the spaces were made from
	claims    map[string]string          // networks of the pinned ones, by holder
	restoring map[string]bool            // networks whose addresses are not all booked yet
	attached  map[client.ObjectKey]*attachedPod
	machines  map[client.ObjectKey]map[client.ObjectKey]bool // pods of each
	placed    map[client.ObjectKey]map[string]bool           // interfaces with ports of each
	seen      int                                            // pods so far
}

// attachedPod is a pod with what it has.
type attachedPod struct {
	uid     types.UID
	seen    int // when it came
	node    string
	job     types.UID // migration that the pod is the target of
	machine machinepod.Machine
	on      map[string]attachment // by key of the annotation
	member  policy.Port           // what policies see of it
}

// attachment is one interface that a pod has.
type attachment struct {
	attach.Wish
	holder  string
	given   ipam.Addresses
	claimed bool // its claim says what it has
}

func newTenants(s settings.Settings) *tenants {
	t := &tenants{
		spaces: map[string]catalog.Space{}, configs: map[string]netconf.Network{}, claims: map[string]string{}, restoring: map[string]bool{},
		attached: map[client.ObjectKey]*attachedPod{}, machines: map[client.ObjectKey]map[client.ObjectKey]bool{},
		placed: map[client.ObjectKey]map[string]bool{},
	}
	t.catalog = catalog.New(s, func(name string) bool { return t.spaces[name] != nil && t.spaces[name].InUse() })
	return t
}

// user is a pod as a user of addresses.
func user(pod client.ObjectKey, uid types.UID) string { return pod.String() + "@" + string(uid) }

// claimHolder is what addresses belong to that a claim keeps.
func claimHolder(namespace, name string) string { return "claim/" + namespace + "/" + name }

// holder is what the addresses of a wish belong to: its claim, the machine's interface, or the pod's.
func holder(pod *corev1.Pod, w attach.Wish) string {
	machine, _ := machinepod.Of(pod)
	switch {
	case w.Claim != "":
		return claimHolder(pod.Namespace, w.Claim)
	case w.NIC != "":
		return topology.NICPort(pod.Namespace, machine.Name, w.NIC) + "@" + string(machine.UID)
	}
	return "pod/" + pod.Namespace + "/" + pod.Name + "/" + w.Key + "@" + string(pod.UID)
}

// owner is whose MAC it is.
func owner(pod *corev1.Pod) string {
	if machine, ok := machinepod.Of(pod); ok {
		return pod.Namespace + "/" + machine.Name
	}
	return pod.Namespace + "/" + pod.Name
}

// plan is everything that a pod wishes.
func (t *tenants) plan(f attach.Facts) ([]attach.Wish, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.Networks = t.catalog
	return attach.Plan(f)
}

// podLocked is the record of a pod, made anew when another pod has taken the name.
func (t *tenants) podLocked(pod *corev1.Pod) *attachedPod {
	key := client.ObjectKeyFromObject(pod)
	p := t.attached[key]
	if p == nil || p.uid != pod.UID {
		t.seen++
		p = &attachedPod{uid: pod.UID, seen: t.seen, on: map[string]attachment{}}
		t.attached[key] = p
	}
	p.node, p.job = pod.Spec.NodeName, types.UID(pod.Labels[virtv1.MigrationJobLabel])
	p.member = memberOf(pod)
	if machine, ok := machinepod.Of(pod); ok {
		p.machine = machine
		m := client.ObjectKey{Namespace: pod.Namespace, Name: machine.Name}
		if t.machines[m] == nil {
			t.machines[m] = map[client.ObjectKey]bool{}
		}
		t.machines[m][key] = true
	}
	return p
}

// take gives a pod what it wishes, with known addresses when it had some before.
func (t *tenants) take(pod *corev1.Pod, w attach.Wish, known *podnetworks.Network) (attachment, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.restoring[w.Network] {
		return attachment{}, &attach.Waiting{On: attach.OnNetwork(w.Network), Err: fmt.Errorf("network %s gets its addresses back first", w.Network)}
	}
	return t.takeLocked(pod, w, known)
}

// restore gives a pod back what its annotation says.
func (t *tenants) restore(pod *corev1.Pod, w attach.Wish, known *podnetworks.Network) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := t.takeLocked(pod, w, known)
	return err
}

func (t *tenants) takeLocked(pod *corev1.Pod, w attach.Wish, known *podnetworks.Network) (attachment, error) {
	key := client.ObjectKeyFromObject(pod)
	space := t.spaces[w.Network]
	if space == nil {
		return attachment{}, &attach.Waiting{On: attach.OnDefinition(definitionOf(w.Key)), Err: fmt.Errorf("network %s is not there", w.Network)}
	}
	if old := t.attached[key]; old != nil && old.uid != pod.UID {
		t.leaveLocked(key, old)
	}
	a := attachment{Wish: w, holder: holder(pod, w)}
	request := ipam.Request{Holder: a.holder, User: user(key, pod.UID), Node: pod.Spec.NodeName, Owner: owner(pod), Addresses: ipam.Addresses{IPs: w.IPs, MAC: w.MAC}}
	if known != nil {
		request.Addresses = knownAddresses(known, len(w.Static) == 0)
	}
	addresses, err := space.Take(request)
	if err != nil {
		return attachment{}, &attach.Waiting{On: attach.OnNetwork(w.Network), Err: fmt.Errorf("network %s: %w", w.Network, err)}
	}
	a.given = addresses
	t.podLocked(pod).on[w.Key] = a
	return a, nil
}

// knownAddresses are those that an annotation says.
func knownAddresses(known *podnetworks.Network, given bool) ipam.Addresses {
	a := ipam.Addresses{MAC: known.MAC}
	if given {
		for _, ip := range known.IPs {
			a.IPs = append(a.IPs, ip.Addr())
		}
	}
	return a
}

// definitionOf is the definition that a key of an annotation names; a number may follow it.
func definitionOf(key string) string {
	parts := strings.SplitN(key, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

// has is what a pod has under a key.
func (t *tenants) has(pod *corev1.Pod, key string) (attachment, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.attached[client.ObjectKeyFromObject(pod)]
	if p == nil || p.uid != pod.UID {
		return attachment{}, false
	}
	a, ok := p.on[key]
	return a, ok
}

// claimed notes that a claim says what a pod has under a key.
func (t *tenants) claimed(pod *corev1.Pod, key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.attached[client.ObjectKeyFromObject(pod)]
	if p == nil || p.uid != pod.UID {
		return
	}
	if a, ok := p.on[key]; ok {
		a.claimed = true
		p.on[key] = a
	}
}

// detach takes back what a pod has beside the given keys. It returns the networks where something is free now.
func (t *tenants) detach(pod *corev1.Pod, keep map[string]bool) (freed []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := client.ObjectKeyFromObject(pod)
	p := t.attached[key]
	if p == nil || p.uid != pod.UID {
		return nil
	}
	for k, a := range p.on {
		if !keep[k] {
			delete(p.on, k)
			if t.endLocked(a, user(key, p.uid)) {
				freed = append(freed, a.Network)
			}
		}
	}
	return freed
}

// leave takes back everything that a pod has. It returns the networks where something is free now, and the pod's machine.
func (t *tenants) leave(key client.ObjectKey) (freed []string, machine client.ObjectKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.attached[key]
	if p == nil {
		return nil, machine
	}
	if p.machine.Name != "" {
		machine = client.ObjectKey{Namespace: key.Namespace, Name: p.machine.Name}
	}
	return t.leaveLocked(key, p), machine
}

func (t *tenants) leaveLocked(key client.ObjectKey, p *attachedPod) (freed []string) {
	for _, a := range p.on {
		if t.endLocked(a, user(key, p.uid)) {
			freed = append(freed, a.Network)
		}
	}
	delete(t.attached, key)
	machine := client.ObjectKey{Namespace: key.Namespace, Name: p.machine.Name}
	delete(t.machines[machine], key)
	if len(t.machines[machine]) == 0 {
		delete(t.machines, machine)
	}
	return freed
}

// endLocked takes back what a user has by an attachment. A layer3 network may be gone before its last pods, when their node is.
func (t *tenants) endLocked(a attachment, user string) (freed bool) {
	space := t.spaces[a.Network]
	return space != nil && space.Leave(user, a.holder)
}

// attachments are what a pod has, in the order of the keys.
func (t *tenants) attachments(pod *corev1.Pod) []attachment {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.attached[client.ObjectKeyFromObject(pod)]
	if p == nil || p.uid != pod.UID {
		return nil
	}
	var out []attachment
	for _, key := range slices.Sorted(maps.Keys(p.on)) {
		out = append(out, p.on[key])
	}
	return out
}

// network is a network with everything decided.
func (t *tenants) network(name string) (topology.Network, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.networkLocked(name)
}

// withLengths are addresses with the lengths of the network's subnets, or of the slices that they are of.
func withLengths(n topology.Network, ips []netip.Addr) []netip.Prefix {
	subnets := n.Subnets
	if n.Topology == netconf.Layer3 {
		subnets = nil
		for _, s := range n.Slices {
			subnets = append(subnets, s.Subnets...)
		}
	}
	var out []netip.Prefix
	for _, ip := range ips {
		at := slices.IndexFunc(subnets, func(s netip.Prefix) bool { return s.Contains(ip) })
		if at >= 0 {
			out = append(out, netip.PrefixFrom(ip, subnets[at].Bits()))
		}
	}
	return out
}
