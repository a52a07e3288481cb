package components

import (
	"fmt"
	"net/netip"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/supervise"
	"patchbay/internal/golden"
	"patchbay/internal/settings"
)

func testInput() Input {
	s := settings.Default()
	s.ClusterName, s.FabricMTU, s.PodMTU = "c", 9000, 8900
	return Input{
		Cluster: layout.Cluster{Home: "/h", Name: "c"}, Nodes: 2, Settings: s, SandboxImage: "patchbay.io/pause:1",
		Programs: Programs{
			Patchbay: "/p/bin/patchbay", PatchbayKube: "/p/bin/patchbay-kube", Shim: "/p/bin/containerd-shim-runc-v2", CNI: "/p/bin/patchbay-cni",
			Runc: "/usr/sbin/runc", OVSDBServer: "/usr/sbin/ovsdb-server", OVSVSwitchd: "/usr/sbin/ovs-vswitchd",
			OVNNorthd: "/usr/bin/ovn-northd", OVNController: "/usr/bin/ovn-controller",
		},
	}
}

// TestCommandLines shows every process of the control plane and of the first node.
func TestCommandLines(t *testing.T) {
	var out strings.Builder
	for _, u := range List(testInput()) {
		if u.Node == "node-2" {
			continue
		}
		fmt.Fprintf(&out, "== %s\n", u.Name)
		if len(u.After) > 0 {
			fmt.Fprintf(&out, "after %s\n", strings.Join(u.After, ", "))
		}
		if len(u.FirstAfter) > 0 {
			fmt.Fprintf(&out, "the first time after %s\n", strings.Join(u.FirstAfter, ", "))
		}
		for i, word := range u.Command {
			fmt.Fprintf(&out, "%s%s\n", strings.Repeat("  ", min(i, 1)), word)
		}
		for _, variable := range u.Env {
			fmt.Fprintf(&out, "  env %s\n", variable)
		}
	}
	golden.Check(t, "txt", out.String())
}

func TestFilesOfANode(t *testing.T) {
	in := testInput()
	files := in.nodeFiles(in.Cluster.Node(1))
	var names []string
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	var out strings.Builder
	for _, name := range names {
		fmt.Fprintf(&out, "== %s\n%s", name, files[name])
	}
	golden.Check(t, "txt", out.String())
}

func TestTheListIsAccepted(t *testing.T) {
	units := List(testInput())
	if _, err := supervise.New(supervise.Config{Run: t.TempDir(), Logs: t.TempDir()}, units); err != nil {
		t.Error(err)
	}
	for _, u := range units {
		if len(u.Command) > 0 && (u.Probe == nil || u.Within == nil || u.Grace == 0) {
			t.Errorf("%s has no probe, no namespaces or no grace", u.Name)
		}
		if len(u.Command) == 0 && u.Name != Bootstrap && u.Name != APIProxy && u.Prepare == nil {
			t.Errorf("step %s does nothing", u.Name)
		}
	}
}

func TestChassis(t *testing.T) {
	in := testInput()
	userspace, kernel := in.chassis(in.Cluster.Node(2)), func() any { in.KernelDatapath = true; return in.chassis(in.Cluster.Node(2)).Datapath }()
	if userspace.Datapath != "netdev" || kernel != "system" {
		t.Errorf("datapaths are %v and %v", userspace.Datapath, kernel)
	}
	if userspace.MTU != 9000 || userspace.EncapIPs[0] != "172.30.0.12" || userspace.Southbound != "ssl:172.30.0.1:6642" {
		t.Errorf("chassis is %+v", userspace)
	}
}

func TestNothingNeedsTheHost(t *testing.T) {
	in := testInput()
	for _, u := range List(in) {
		for _, word := range u.Command[min(1, len(u.Command)):] {
			for _, path := range strings.FieldsFunc(word, func(r rune) bool { return strings.ContainsRune("=:,", r) }) {
				address := strings.HasPrefix(path, "//") || path == "/112"
				if strings.HasPrefix(path, "/") && !address && !strings.HasPrefix(path, "/h/c/") {
					t.Errorf("%s is told about %s, which is not the cluster's", u.Name, path)
				}
			}
		}
	}
}

func TestFailedChecks(t *testing.T) {
	cases := map[string]struct{ body, want string }{
		"verbose": {"[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\n[-]informer-sync failed\nreadyz check failed\n",
			"[-]etcd failed: reason withheld; [-]informer-sync failed"},
		"plain": {"forbidden\n", "forbidden"},
	}
	for name, c := range cases {
		if diff := cmp.Diff(c.want, failedChecks(c.body)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestTexts(t *testing.T) {
	if diff := cmp.Diff([]string{"10.96.0.10", "::1"}, texts([]netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.IPv6Loopback()})); diff != "" {
		t.Error(diff)
	}
}
