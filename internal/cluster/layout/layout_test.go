package layout

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNew(t *testing.T) {
	t.Setenv(HomeVariable, "/srv/../srv/clusters/")
	c, err := New("my-1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("/srv/clusters/my-1/settings.json", c.SettingsFile()); diff != "" {
		t.Error(diff)
	}
	t.Setenv(HomeVariable, "")
	if c, _ = New("x"); c.Dir() != "/var/lib/patchbay/x" {
		t.Errorf("default directory is %s", c.Dir())
	}
}

func TestNewRefuses(t *testing.T) {
	cases := map[string]struct{ home, name, want string }{
		"empty":         {"", "", "cannot name a cluster"},
		"path":          {"", "../etc", "cannot name a cluster"},
		"upper case":    {"", "Mine", "use 1 to 20 lower-case letters"},
		"dash at end":   {"", "a-", "cannot name a cluster"},
		"too long":      {"", strings.Repeat("a", 21), "cannot name a cluster"},
		"relative home": {"clusters", "a", "must be an absolute path"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Setenv(HomeVariable, c.home)
			if _, err := New(c.name); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error that says %q", err, c.want)
			}
		})
	}
}

func TestNodes(t *testing.T) {
	c := Cluster{Home: "/h", Name: "c"}
	type node struct{ Name, Namespace, IPv4, IPv6, MAC, Port, Dir string }
	var got []node
	for _, index := range []int{1, 2, 200} {
		n := c.Node(index)
		got = append(got, node{n.Name, n.Namespace(), n.IPv4().String(), n.IPv6().String(), n.MAC().String(), n.FabricPort(), n.Path()})
	}
	want := []node{
		{"node-1", "pb-c-node-1", "172.30.0.11", "fd00:172:30::b", "0a:58:ac:1e:00:0b", "node1", "/h/c/nodes/node-1"},
		{"node-2", "pb-c-node-2", "172.30.0.12", "fd00:172:30::c", "0a:58:ac:1e:00:0c", "node2", "/h/c/nodes/node-2"},
		{"node-200", "pb-c-node-200", "172.30.0.210", "fd00:172:30::d2", "0a:58:ac:1e:00:d2", "node200", "/h/c/nodes/node-200"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(c.Nodes(MaxNodes)) != MaxNodes {
		t.Error("not all nodes are listed")
	}
}
