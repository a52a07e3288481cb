package nmstate

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"patchbay/internal/golden"
)

// node is what the tests' node has.
func node(t *testing.T) State {
	t.Helper()
	data, err := os.ReadFile("testdata/node.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var s State
	if err := yaml.UnmarshalStrict(data, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

var filtering = Host{VLANFiltering: true, Owned: func(name string) bool { return name == "br-int" }}

func texts(ops []Op) string {
	var b strings.Builder
	for _, op := range ops {
		b.WriteString(op.String() + "\n")
	}
	return b.String()
}

// TestPlans: a desired state on the tests' node, and the changes in their order.
func TestPlans(t *testing.T) {
	files, err := filepath.Glob("testdata/TestPlans_*.yaml")
	if err != nil || len(files) < 12 {
		t.Fatalf("%d plans, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "TestPlans_"), ".yaml")
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			desired, err := Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			before := describe(desired.WithDefaults())
			target, err := Merge(node(t), desired.WithDefaults(), filtering)
			if err != nil {
				t.Fatal(err)
			}
			ops := Diff(node(t), target)
			undo := texts(Diff(node(t), NewCheckpoint(name, 1, node(t), target).Target(node(t))))
			if undo != "" {
				t.Errorf("before anything was changed there is something to undo:\n%s", undo)
			}
			if diff := cmp.Diff(before, describe(desired)); diff != "" {
				t.Errorf("merging changed the document (-before +after):\n%s", diff)
			}
			golden.Check(t, "ops", texts(ops))
		})
	}
}

func TestCheckpointSurvivesTheDisk(t *testing.T) {
	desired, err := Parse([]byte("interfaces: [{name: br9, state: absent}]"))
	if err != nil {
		t.Fatal(err)
	}
	target, err := Merge(node(t), desired, filtering)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(NewCheckpoint("p", 3, node(t), target))
	if err != nil {
		t.Fatal(err)
	}
	var read Checkpoint
	if err := json.Unmarshal(data, &read); err != nil {
		t.Fatal(err)
	}
	// The bridge is gone, its port is loose and has an address.
	after := node(t)
	var left []Interface
	for _, i := range after.Interfaces {
		switch i.Name {
		case "br9":
			continue
		case "veth9":
			i.Controller, i.State = nil, Down
			i.IPv4 = &IP{Enabled: new(true), Address: []Address{{IP: "192.0.2.99", PrefixLength: 24}}}
		}
		left = append(left, i)
	}
	after.Interfaces = left
	want := `add linux-bridge br9
put veth9 into linux-bridge br9
set mtu of br9 to 1500
set linux-bridge br9 {"stp":{"enabled":true,"forward-delay":15},"mac-ageing-time":300,"multicast-snooping":true}
turn IPv6 of br9 off
delete address 192.0.2.99/24 of veth9
set br9 up
set veth9 up
`
	if diff := cmp.Diff(want, texts(Diff(after, read.Target(after)))); diff != "" {
		t.Errorf("way back (-want +got):\n%s", diff)
	}
}

func TestKernelWithoutVLANFiltering(t *testing.T) {
	plain := Host{}
	all, err := Parse([]byte("interfaces: [{name: br1, type: linux-bridge, bridge: {port: [{name: eth1}]}}]"))
	if err != nil {
		t.Fatal(err)
	}
	target, err := Merge(node(t), all.WithDefaults(), plain)
	if err != nil {
		t.Fatal(err)
	}
	if plan := texts(Diff(node(t), target)); strings.Contains(plan, "VLAN") || strings.Contains(plan, "vlan") {
		t.Errorf("a bridge that carries every tag needs no filtering:\n%s", plan)
	}
	some, err := Parse([]byte("interfaces: [{name: br1, type: linux-bridge, bridge: {port: [{name: eth1, vlan: {mode: access, tag: 5}}]}}]"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Merge(node(t), some.WithDefaults(), plain); err == nil || !strings.Contains(err.Error(), "no VLAN filtering") {
		t.Errorf("got %v", err)
	}
}
