package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/cluster/kubeconfig"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/golden"
)

func testRequest(t *testing.T) Request {
	t.Helper()
	return Request{
		Cluster: layout.Cluster{Home: t.TempDir(), Name: "c"}, Nodes: 2, Domain: "cluster.local", LocalPort: 6443,
		ServiceIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:10:96::1")},
	}
}

// TestEveryCertificate keeps the list of who is who in one readable file.
func TestEveryCertificate(t *testing.T) {
	r := testRequest(t)
	if err := EnsureCluster(r); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for file, data := range files(t, r.Cluster.Dir()) {
		for _, line := range describe(t, filepath.Join(r.Cluster.Dir(), file), data) {
			lines = append(lines, file+": "+line)
		}
	}
	sort.Strings(lines)
	golden.Check(t, "txt", strings.Join(lines, "\n")+"\n")
}

func describe(t *testing.T, path string, data string) []string {
	t.Helper()
	if strings.HasSuffix(path, ".key") {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return []string{"key, mode " + info.Mode().String()}
	}
	if config, err := kubeconfig.Read(path); err == nil {
		return []string{"kubeconfig for " + config.Server + " with " + describeCertificate(t, config.ClientCert)}
	}
	if block, _ := pem.Decode([]byte(data)); block != nil && block.Type == "CERTIFICATE" {
		return []string{describeCertificate(t, []byte(data))}
	}
	return []string{"other"}
}

func describeCertificate(t *testing.T, data []byte) string {
	t.Helper()
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	parts := []string{cert.Subject.String(), "signed by " + cert.Issuer.CommonName}
	for _, usage := range cert.ExtKeyUsage {
		parts = append(parts, map[x509.ExtKeyUsage]string{x509.ExtKeyUsageServerAuth: "server", x509.ExtKeyUsageClientAuth: "client"}[usage])
	}
	return strings.Join(append(append(parts, cert.DNSNames...), texts(cert.IPAddresses)...), ", ")
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		found[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestASecondCallKeepsEverything(t *testing.T) {
	r := testRequest(t)
	if err := EnsureCluster(r); err != nil {
		t.Fatal(err)
	}
	before := files(t, r.Cluster.Dir())
	if err := EnsureCluster(r); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, files(t, r.Cluster.Dir())); diff != "" {
		t.Errorf("files changed (-first +second):\n%s", diff)
	}
}

func TestWhatIsBrokenOrChangedIsMadeAnew(t *testing.T) {
	r := testRequest(t)
	if err := EnsureCluster(r); err != nil {
		t.Fatal(err)
	}
	before := files(t, r.Cluster.Dir())
	r.ServiceIPs = r.ServiceIPs[:1] // the API server's certificate names them
	if err := os.Remove(r.Cluster.PKI("etcd.key")); err != nil {
		t.Fatal(err)
	}
	// A certificate that was cut off by a full disk, and a key that belongs to another certificate.
	if err := os.WriteFile(r.Cluster.PKI("ovn-sb.crt"), []byte("-----BEGIN"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.Cluster.PKI("front-proxy-client.key"), []byte(before["pki/etcd.key"]), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := EnsureCluster(r); err != nil {
		t.Fatal(err)
	}
	var changed []string
	for file, data := range files(t, r.Cluster.Dir()) {
		if before[file] != data {
			changed = append(changed, file)
		}
	}
	sort.Strings(changed)
	want := []string{"pki/etcd.crt", "pki/etcd.key", "pki/front-proxy-client.crt", "pki/front-proxy-client.key",
		"pki/kube-apiserver.crt", "pki/kube-apiserver.key", "pki/ovn-sb.crt", "pki/ovn-sb.key"}
	if diff := cmp.Diff(want, changed); diff != "" {
		t.Errorf("files made anew (-want +got):\n%s", diff)
	}
}

func TestADamagedAuthorityIsNotReplaced(t *testing.T) {
	r := testRequest(t)
	if err := EnsureCluster(r); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.Cluster.PKI("ca.key"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A new authority would lock out every client of the old one.
	if err := EnsureCluster(r); err == nil || !strings.Contains(err.Error(), "ca.crt") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

// TestTrust shows which client may talk to which server.
func TestTrust(t *testing.T) {
	r := testRequest(t)
	if err := EnsureCluster(r); err != nil {
		t.Fatal(err)
	}
	c, node := r.Cluster, r.Cluster.Node(1)
	agent := pair{node.Path("pki", "agent", "tls.crt"), node.Path("pki", "agent", "tls.key"), node.Path("pki", "agent", "ca.crt")}
	controller := pair{c.PKI("controller", "tls.crt"), c.PKI("controller", "tls.key"), c.PKI("controller", "ca.crt")}
	southbound := pair{c.PKI("ovn-sb.crt"), c.PKI("ovn-sb.key"), c.PKI("ovn-ca.crt")}
	chassis := pair{node.Path("pki", "ovn-controller.crt"), node.Path("pki", "ovn-controller.key"), c.PKI("ovn-ca.crt")}
	etcd := pair{c.PKI("etcd.crt"), c.PKI("etcd.key"), c.PKI("etcd-ca.crt")}
	etcdClient := pair{c.PKI("etcd-client.crt"), c.PKI("etcd-client.key"), c.PKI("etcd-ca.crt")}
	kubelet := pair{node.Path("pki", "kubelet.crt"), node.Path("pki", "kubelet.key"), c.PKI("ca.crt")}
	cases := map[string]struct {
		server pair
		name   string
		client pair
		want   bool
	}{
		"controller -> agent":           {agent, "172.30.0.11", controller, true},
		"controller -> other address":   {agent, "172.30.0.12", controller, false},
		"agent -> controller":           {controller, "172.30.0.1", agent, true},
		"API server -> webhook":         {controller, "patchbay-webhook.patchbay-system.svc", controller, true},
		"ovn-controller -> southbound":  {southbound, "172.30.0.1", chassis, true},
		"agent -> southbound":           {southbound, "172.30.0.1", agent, false},
		"API server -> etcd":            {etcd, "127.0.0.1", etcdClient, true},
		"ovn-controller -> etcd":        {etcd, "127.0.0.1", chassis, false},
		"kubelet's certificate, client": {agent, "172.30.0.11", kubelet, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if err := handshake(t, c.server, c.name, c.client); (err == nil) != c.want {
				t.Errorf("accepted: %v (%v), want %v", err == nil, err, c.want)
			}
		})
	}
}

type pair struct{ cert, key, ca string }

func (p pair) load(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(p.ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(data)
	return cert, pool
}

// handshake tries mutual TLS between two of the cluster's parties.
func handshake(t *testing.T, server pair, name string, client pair) error {
	t.Helper()
	serverCert, serverPool := server.load(t)
	clientCert, clientPool := client.load(t)
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() {
		err := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{serverCert}, ClientCAs: serverPool, ClientAuth: tls.RequireAndVerifyClientCert}).Handshake()
		a.Close()
		done <- err
	}()
	conn := tls.Client(b, &tls.Config{Certificates: []tls.Certificate{clientCert}, RootCAs: clientPool, ServerName: name})
	clientErr := conn.Handshake()
	if clientErr != nil {
		b.Close()
	}
	return errors.Join(clientErr, <-done)
}
