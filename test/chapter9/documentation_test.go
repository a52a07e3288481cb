package chapter9

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Statements that only a manual can make true: the page must say it.
func TestDocumentation(t *testing.T) {
	for name, want := range map[string]struct {
		page     string
		sentence string
	}{
		"9.1-C1 secondary networks of an IPv6 cluster":  {"concepts.md", "Secondary networks on it are localnet and Linux bridge networks only."},
		"9.1-C2 IPv6 clusters are a preview":            {"concepts.md", "A cluster with IPv6 as its single family is a preview and not for production."},
		"9.1-C8 the nodes' network on chosen NICs":      {"concepts.md", "one NIC, a bond or a VLAN over a chosen set of NICs"},
		"9.1-C10 no underlay on public clouds":          {"concepts.md", "does not work on public clouds such as AWS (ROSA), Azure, Google Cloud and Oracle Cloud Infrastructure"},
		"9.1-C11 layer2 on public clouds":               {"concepts.md", "User-defined networks with the layer2 topology are the recommended choice there"},
		"9.2.3-C5 Windows without VirtIO":               {"masquerade.md", "Windows without a VirtIO driver keeps 1500 bytes whatever the network says; set it by hand"},
		"9.3.3-C5 passt's connections can be monitored": {"passt.md", "The guest's TCP connections are sockets of its pod, so whatever watches the sockets of pods on a node"},
		"SSH.0-C1 virtctl is for troubleshooting":       {"access.md", "`virtctl ssh` and port forwarding are for troubleshooting"},
		"SSH.0-C3 how far each Service reaches":         {"access.md", "A Service of type ClusterIP reaches as far as the cluster, NodePort as far as the nodes' addresses, LoadBalancer whoever reaches its external address."},
		"SSH.0-C4 a secondary network performs best":    {"access.md", "A secondary network performs best"},
	} {
		t.Run(name, func(t *testing.T) {
			page, err := os.ReadFile(filepath.Join(cluster.Root(), "docs", want.page))
			if err != nil {
				t.Fatal(err)
			}
			if text := strings.Join(strings.Fields(string(page)), " "); !strings.Contains(text, want.sentence) {
				t.Errorf("%s does not say %q", want.page, want.sentence)
			}
		})
	}
}
