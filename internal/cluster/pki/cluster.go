package pki

import (
	"fmt"
	"net"
	"net/netip"

	"patchbay/internal/cluster/kubeconfig"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/home"
)

// User and group names that certificates carry; the RBAC objects of package bootstrap name the same.
const (
	ControllerUser  = "patchbay:controller"
	DNSUser         = "patchbay:dns"
	AgentUserPrefix = "patchbay:agent:"
	AgentGroup      = "patchbay:agents"
	adminGroup      = "system:masters"
)

// domains are the authorities of one cluster.
type domains struct {
	kubernetes, etcd, frontProxy, ovn, agents *Authority
}

// Request says for which cluster certificates are made.
type Request struct {
	Cluster    layout.Cluster
	Nodes      int
	ServiceIPs []netip.Addr // of the Service "kubernetes"
	Domain     string       // of the cluster, "cluster.local"
	LocalPort  int          // where the API server answers on 127.0.0.1 of the host
}

// EnsureCluster makes what is missing of all keys, certificates and kubeconfig files of a cluster.
func EnsureCluster(r Request) error {
	d, err := ensureDomains(r.Cluster)
	if err != nil {
		return err
	}
	if err := EnsureSigningKey(r.Cluster.PKI("service-account.key"), r.Cluster.PKI("service-account.pub")); err != nil {
		return err
	}
	if err := ensureControlPlane(r, d); err != nil {
		return err
	}
	for _, node := range r.Cluster.Nodes(r.Nodes) {
		if err := ensureNode(node, d); err != nil {
			return fmt.Errorf("certificates of %s: %w", node.Name, err)
		}
	}
	return nil
}

func ensureDomains(c layout.Cluster) (domains, error) {
	var d domains
	for _, domain := range []struct {
		target     **Authority
		file, name string
	}{
		{&d.kubernetes, "ca", "patchbay kubernetes"},
		{&d.etcd, "etcd-ca", "patchbay etcd"},
		{&d.frontProxy, "front-proxy-ca", "patchbay front proxy"},
		{&d.ovn, "ovn-ca", "patchbay ovn"},
		{&d.agents, "agents-ca", "patchbay agents"},
	} {
		authority, err := LoadOrCreateAuthority(c.PKI(domain.file+".crt"), c.PKI(domain.file+".key"), domain.name)
		if err != nil {
			return domains{}, err
		}
		*domain.target = authority
	}
	return d, nil
}

// leafFile is one certificate below a directory.
type leafFile struct {
	authority *Authority
	file      string // without .crt and .key
	leaf      Leaf
}

func ensureLeaves(path func(...string) string, leaves []leafFile) error {
	for _, l := range leaves {
		if _, err := l.authority.EnsureFiles(path(l.file+".crt"), path(l.file+".key"), l.leaf); err != nil {
			return err
		}
	}
	return nil
}

func ensureControlPlane(r Request, d domains) error {
	fabric := ipList(layout.ControlPlane4, layout.ControlPlane6)
	loopback := ipList(netip.MustParseAddr("127.0.0.1"))
	err := ensureLeaves(r.Cluster.PKI, []leafFile{
		{d.kubernetes, "kube-apiserver", Leaf{CommonName: "kube-apiserver", Server: true, DNSNames: apiNames(r.Domain),
			IPs: append(append(loopback, fabric...), ipList(r.ServiceIPs...)...)}},
		{d.kubernetes, "kubelet-client", Leaf{CommonName: "kube-apiserver-kubelet-client", Organizations: []string{"patchbay:kubelet-clients"}, Client: true}},
		{d.etcd, "etcd", Leaf{CommonName: "etcd", Server: true, Client: true, DNSNames: []string{"localhost"}, IPs: loopback}},
		{d.etcd, "etcd-client", Leaf{CommonName: "kube-apiserver", Client: true}},
		{d.frontProxy, "front-proxy-client", Leaf{CommonName: "front-proxy-client", Client: true}},
		{d.ovn, "ovn-sb", Leaf{CommonName: "ovn-sb", Server: true, Client: true, IPs: fabric}},
	})
	if err != nil {
		return err
	}
	if err := ensureController(r.Cluster, d.agents, fabric); err != nil {
		return err
	}
	return ensureControlPlaneKubeconfigs(r, d.kubernetes)
}

// ensureController makes the certificate of the webhooks and the aggregated API, which is also the one that agents accept.
func ensureController(c layout.Cluster, agents *Authority, fabric []net.IP) error {
	leaf := Leaf{
		CommonName: ControllerUser, Server: true, Client: true, IPs: fabric,
		// Which Service stands before the controller is the controller's choice; its namespace is not.
		DNSNames: []string{"*." + home.Namespace + ".svc", "localhost"},
	}
	return ensureTLSDir(agents, func(file string) string { return c.PKI("controller", file) }, leaf)
}

func ensureControlPlaneKubeconfigs(r Request, ca *Authority) error {
	fabricURL := "https://" + netip.AddrPortFrom(layout.ControlPlane4, layout.APIPort).String()
	localURL := fmt.Sprintf("https://127.0.0.1:%d", r.LocalPort)
	for _, k := range []struct {
		file, server string
		leaf         Leaf
	}{
		{r.Cluster.Kubeconfig(), localURL, Leaf{CommonName: "patchbay-admin", Organizations: []string{adminGroup}}},
		{r.Cluster.ComponentKubeconfig("supervisor"), fabricURL, Leaf{CommonName: "patchbay-supervisor", Organizations: []string{adminGroup}}},
		{r.Cluster.ComponentKubeconfig("kube-controller-manager"), fabricURL, Leaf{CommonName: "system:kube-controller-manager"}},
		{r.Cluster.ComponentKubeconfig("kube-scheduler"), fabricURL, Leaf{CommonName: "system:kube-scheduler"}},
		{r.Cluster.ComponentKubeconfig("controller"), fabricURL, Leaf{CommonName: ControllerUser}},
		{r.Cluster.ComponentKubeconfig("dns"), fabricURL, Leaf{CommonName: DNSUser}},
	} {
		if err := ensureKubeconfig(ca, r.Cluster.Name, k.file, k.server, k.leaf); err != nil {
			return err
		}
	}
	return nil
}

func ensureNode(node layout.Node, d domains) error {
	ips := ipList(node.IPv4(), node.IPv6())
	err := ensureLeaves(node.Path, []leafFile{
		{d.kubernetes, "pki/kubelet", Leaf{CommonName: "system:node:" + node.Name, Server: true, DNSNames: []string{node.Name}, IPs: ips}},
		// OVN's access control compares the common name with the chassis name.
		{d.ovn, "pki/ovn-controller", Leaf{CommonName: node.Name, Client: true}},
	})
	if err != nil {
		return err
	}
	agent := AgentUserPrefix + node.Name
	err = ensureTLSDir(d.agents, func(file string) string { return node.Path("pki", "agent", file) },
		Leaf{CommonName: agent, Server: true, Client: true, DNSNames: []string{node.Name}, IPs: ips})
	if err != nil {
		return err
	}
	server := "https://" + netip.AddrPortFrom(layout.ControlPlane4, layout.APIPort).String()
	name := node.Cluster.Name
	err = ensureKubeconfig(d.kubernetes, name, node.Path("agent.kubeconfig"), server, Leaf{CommonName: agent, Organizations: []string{AgentGroup}})
	if err != nil {
		return err
	}
	return ensureKubeconfig(d.kubernetes, name, node.Path("kubelet.kubeconfig"), server,
		Leaf{CommonName: "system:node:" + node.Name, Organizations: []string{"system:nodes"}})
}

// ensureTLSDir fills a directory with tls.crt, tls.key and ca.crt.
func ensureTLSDir(authority *Authority, path func(string) string, leaf Leaf) error {
	if _, err := authority.EnsureFiles(path("tls.crt"), path("tls.key"), leaf); err != nil {
		return err
	}
	return writeAtomic(path("ca.crt"), authority.PEM(), 0o644)
}

// ensureKubeconfig keeps the client certificate inside an existing file while it is valid.
func ensureKubeconfig(ca *Authority, cluster, file, server string, leaf Leaf) error {
	leaf.Client = true
	var pair Pair
	if old, err := kubeconfig.Read(file); err == nil {
		pair = Pair{Cert: old.ClientCert, Key: old.ClientKey}
	}
	if !ca.accepts(pair, leaf) {
		issued, err := ca.Issue(leaf)
		if err != nil {
			return err
		}
		pair = issued
	}
	data, err := kubeconfig.Config{Name: kubeconfig.ContextName(cluster), Server: server, CA: ca.PEM(), ClientCert: pair.Cert, ClientKey: pair.Key}.Marshal()
	if err != nil {
		return err
	}
	return writeAtomic(file, data, 0o600)
}

// apiNames are the names under which clients know the API server.
func apiNames(domain string) []string {
	return []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + domain}
}

func ipList(addrs ...netip.Addr) []net.IP {
	ips := make([]net.IP, 0, len(addrs))
	for _, addr := range addrs {
		ips = append(ips, net.IP(addr.AsSlice()))
	}
	return ips
}
