package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"patchbay/internal/podnetworks"
)

// To Kubernetes a pod of a tenant has the address of its leg in the default network, where nobody reaches it. The plugin
// "tenants" stands before the cluster's own answers and puts the addresses on the pod's primary network in their place, so that
// headless services and the names of their members lead to machines and pods of the same network.
const tenantsPlugin = "tenants"

func init() {
	at := slices.Index(dnsserver.Directives, "kubernetes")
	dnsserver.Directives = slices.Insert(dnsserver.Directives, at, tenantsPlugin)
	plugin.Register(tenantsPlugin, setUpTenants)
}

// setUpTenants reads "tenants KUBECONFIG".
func setUpTenants(c *caddy.Controller) error {
	var kubeconfig string
	if !c.Next() || !c.Args(&kubeconfig) {
		return plugin.Error(tenantsPlugin, c.ArgErr())
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return plugin.Error(tenantsPlugin, err)
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return plugin.Error(tenantsPlugin, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &tenants{pods: podsByLeg(clients)}
	done := make(chan struct{})
	c.OnStartup(func() error {
		go func() {
			defer close(done)
			h.pods.RunWithContext(ctx)
		}()
		return nil
	})
	c.OnShutdown(func() error {
		cancel()
		<-done
		return nil
	})
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	})
	return nil
}

const byLeg = "leg"

// podsByLeg knows the pods that are not over by their addresses in the default network, as far as they have a primary network.
func podsByLeg(clients kubernetes.Interface) cache.SharedIndexInformer {
	living := fields.ParseSelectorOrDie("status.phase!=Succeeded,status.phase!=Failed")
	list := cache.NewListWatchFromClient(clients.CoreV1().RESTClient(), "pods", corev1.NamespaceAll, living)
	pods := cache.NewSharedIndexInformer(list, &corev1.Pod{}, 0, cache.Indexers{byLeg: func(object any) ([]string, error) {
		legs, _ := addresses(object.(*corev1.Pod))
		return texts(legs), nil
	}})
	_ = pods.SetTransform(onlyNetworks) // fails only once it runs
	return pods
}

// onlyNetworks keeps of a pod what the plugin needs.
func onlyNetworks(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	small := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion}}
	if text, ok := pod.Annotations[podnetworks.PodAnnotation]; ok {
		small.Annotations = map[string]string{podnetworks.PodAnnotation: text}
	}
	return small, nil
}

// addresses are a pod's leg and its addresses on its primary network; nothing for a pod that has none.
func addresses(pod *corev1.Pod) (legs, tenant []netip.Addr) {
	networks, err := podnetworks.ParsePod(pod.Annotations)
	if err != nil {
		return nil, nil // the network controller's own annotation: it will write it anew
	}
	for key, n := range networks {
		for _, ip := range n.IPs {
			switch {
			case key == podnetworks.Default && n.Role == podnetworks.InfrastructureLocal:
				legs = append(legs, ip.Addr())
			case key != podnetworks.Default && n.Role == podnetworks.Primary:
				tenant = append(tenant, ip.Addr())
			}
		}
	}
	return legs, tenant
}

func texts(addresses []netip.Addr) []string {
	out := make([]string, len(addresses))
	for n, a := range addresses {
		out[n] = a.String()
	}
	return out
}

// tenants is the plugin.
type tenants struct {
	pods cache.SharedIndexInformer
	next plugin.Handler
}

// Name is the plugin's.
func (h *tenants) Name() string { return tenantsPlugin }

// Ready says whether the pods were read.
func (h *tenants) Ready() bool { return h.pods.HasSynced() }

// ServeDNS has the query answered by others.
func (h *tenants) ServeDNS(ctx context.Context, w dns.ResponseWriter, m *dns.Msg) (int, error) {
	return plugin.NextOrFailure(h.Name(), h.next, ctx, &tenantWriter{ResponseWriter: w, pods: h.pods.GetIndexer()}, m)
}

// tenantWriter changes an answer on its way.
type tenantWriter struct {
	dns.ResponseWriter
	pods cache.Indexer
}

// WriteMsg sends the answer with the addresses that can be reached.
func (w *tenantWriter) WriteMsg(m *dns.Msg) error {
	m.Answer, m.Extra = w.records(m.Answer), w.records(m.Extra)
	return w.ResponseWriter.WriteMsg(m)
}

func (w *tenantWriter) records(from []dns.RR) []dns.RR {
	var out []dns.RR
	for _, record := range from {
		leg, ok := address(record)
		if !ok || isPodName(record.Header().Name) {
			out = append(out, record)
			continue
		}
		out = append(out, w.instead(record, leg)...)
	}
	return out
}

// isPodName tells names that spell an address, which is the answer.
func isPodName(name string) bool {
	labels := dns.SplitDomainName(name)
	return len(labels) > 2 && labels[2] == "pod" && strings.Contains(labels[0], "-")
}

func address(record dns.RR) (netip.Addr, bool) {
	var ip net.IP
	switch r := record.(type) {
	case *dns.A:
		ip = r.A
	case *dns.AAAA:
		ip = r.AAAA
	}
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok
}

// instead returns the records for one: itself, or those of the pod's addresses of the same family on its primary network.
func (w *tenantWriter) instead(record dns.RR, leg netip.Addr) []dns.RR {
	found, err := w.pods.ByIndex(byLeg, leg.String())
	if err != nil || len(found) == 0 {
		return []dns.RR{record}
	}
	var out []dns.RR
	_, tenant := addresses(found[0].(*corev1.Pod))
	for _, ip := range tenant {
		if ip.Is4() == leg.Is4() {
			out = append(out, withAddress(record, ip))
		}
	}
	return out
}

func withAddress(record dns.RR, ip netip.Addr) dns.RR {
	if ip.Is4() {
		return &dns.A{Hdr: *record.Header(), A: ip.AsSlice()}
	}
	return &dns.AAAA{Hdr: *record.Header(), AAAA: ip.AsSlice()}
}

// tenantsDirective is the plugin's line in a server block.
func tenantsDirective(kubeconfig string) string {
	return fmt.Sprintf("\t%s %s\n", tenantsPlugin, kubeconfig)
}
