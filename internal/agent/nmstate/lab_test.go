package nmstate

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/nmstate"
)

// snapshot is the node's network without what changes by itself.
func snapshot(t *testing.T) nmstate.State {
	t.Helper()
	s, err := lab.Observe()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLinuxBridgeComesAndGoes(t *testing.T) {
	cards(t, "eth1", "eth2")
	must(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "eth1")
	enact(t, `
interfaces:
- name: br1
  type: linux-bridge
  state: up
  description: for guests
  mtu: 1400
  ipv4: {enabled: true, address: [{ip: 192.0.2.7, prefix-length: 24}]}
  bridge: {options: {stp: {enabled: false}, mac-ageing-time: 60, multicast-snooping: false}, port: [{name: eth1, stp-hairpin-mode: true, stp-path-cost: 50}]}
routes: {config: [{destination: 198.51.100.0/24, next-hop-interface: br1, next-hop-address: 192.0.2.254, metric: 50}]}
`)
	bridge := snapshot(t).Find("br1", false)
	if bridge == nil || len(bridge.Bridge.Port) != 1 || *bridge.Bridge.Options.STP.Enabled || *bridge.Bridge.Options.MACAgeingTime != 60 {
		t.Fatalf("the bridge is %+v", bridge)
	}
	if got := output(t, "ip", "-br", "addr", "show", "dev", "eth1"); strings.Contains(got, "192.0.2.1") {
		t.Errorf("the port kept its address: %s", got)
	}
	if got := output(t, "ip", "route", "show", "198.51.100.0/24"); !strings.Contains(got, "via 192.0.2.254 dev br1 proto static metric 50") {
		t.Errorf("the route is %q", got)
	}
	if got := output(t, "ip", "-d", "link", "show", "eth1"); !strings.Contains(got, "hairpin on") || !strings.Contains(got, "cost 50") {
		t.Errorf("the port is %s", got)
	}
	enact(t, "interfaces: [{name: br1, type: linux-bridge, state: up, bridge: {port: [{name: eth2}]}}]")
	if got := output(t, "ip", "link", "show", "eth1"); strings.Contains(got, "master") || !strings.Contains(got, ",UP") {
		t.Errorf("a port that was let go: %s", got)
	}
	enact(t, "interfaces: [{name: br1, state: absent}]")
	if exists("br1") || !exists("eth2") {
		t.Error("the bridge is there, or its port went with it")
	}
	enact(t, "interfaces: [{name: br1, state: absent}]") // again
}

func TestVethAddressesAndIPv6(t *testing.T) {
	t.Cleanup(func() { _ = run("ip", "link", "del", "pair0") })
	enact(t, `
interfaces:
- {name: pair0, type: veth, state: up, veth: {peer: pair1}, mac-address: "02:00:00:00:00:01", ipv4: {enabled: true, address: [{ip: 10.9.0.1, prefix-length: 24}]}, ipv6: {enabled: true, address: [{ip: "2001:db8::1", prefix-length: 64}]}}
`)
	enact(t, "interfaces: [{name: pair1, type: veth, state: up, ipv6: {enabled: true, autoconf: true}}]")
	if got := output(t, "ip", "-br", "addr", "show", "dev", "pair0"); !strings.Contains(got, "10.9.0.1/24") || !strings.Contains(got, "2001:db8::1/64") {
		t.Errorf("pair0 has %s", got)
	}
	enact(t, "interfaces: [{name: pair0, type: veth, state: up, ipv4: {enabled: false}, ipv6: {enabled: false}}]")
	if got := output(t, "ip", "-br", "addr", "show", "dev", "pair0"); strings.Contains(got, "/") {
		t.Errorf("addresses stayed: %s", got)
	}
	enact(t, "interfaces: [{name: pair0, type: veth, state: down}]")
	enact(t, "interfaces: [{name: pair0, type: veth, state: absent}]")
	if exists("pair1") {
		t.Error("the other end stayed")
	}
}

func TestOVSBridgeWithMapping(t *testing.T) {
	ns := cards(t, "eth1")
	must(t, "nsenter", "--net="+ns, "ethtool", "-K", "eth1", "tx", "off")
	must(t, "nsenter", "--net="+ns, "ip", "addr", "add", "192.0.2.2/24", "dev", "eth1")
	document := `
interfaces:
- name: br-ext
  type: ovs-bridge
  state: up
  bridge: {allow-extra-patch-ports: true, options: {stp: false, mcast-snooping-enable: true}, port: [{name: eth1}, {name: host1}]}
- {name: host1, type: ovs-interface, state: up, mtu: 1400, ipv4: {enabled: true, address: [{ip: 192.0.2.1, prefix-length: 24}]}}
ovn: {bridge-mappings: [{localnet: tenantblue, bridge: br-ext}]}
`
	enact(t, document)
	t.Cleanup(func() { vsctl(t, "--if-exists", "del-br", "br-ext") })
	if got := vsctl(t, "get", "open", ".", "external_ids:ovn-bridge-mappings"); got != `"physnet:br-ex,tenantblue:br-ext"` {
		t.Errorf("mappings are %s", got)
	}
	if got := vsctl(t, "get", "bridge", "br-ext", "datapath_type"); got != "netdev" {
		t.Errorf("the bridge runs on %s, br-int on netdev", got)
	}
	must(t, "ethtool", "-K", "host1", "tx", "off")
	if err := eventually(func() error { return run("ping", "-c1", "-W1", "192.0.2.2") }); err != nil {
		t.Error(err)
	}
	// OVN's patch ports are nobody's to remove.
	vsctl(t, "add-port", "br-ext", "patch-x", "--", "set", "interface", "patch-x", "type=patch", "options:peer=patch-y",
		"--", "add-port", "br-int", "patch-y", "--", "set", "interface", "patch-y", "type=patch", "options:peer=patch-x")
	t.Cleanup(func() { vsctl(t, "--if-exists", "del-port", "patch-y") })
	enact(t, "interfaces: [{name: br-ext, type: ovs-bridge, state: up, bridge: {port: [{name: eth1, vlan: {mode: access, tag: 5}}]}}]")
	if got := strings.Fields(vsctl(t, "list-ports", "br-ext")); !cmp.Equal(got, []string{"eth1", "patch-x"}) {
		t.Errorf("ports are %v", got)
	}
	if exists("host1") {
		t.Error("host1 stayed")
	}
	enact(t, `
interfaces: [{name: br-ext, type: ovs-bridge, state: absent}, {name: eth1, type: ethernet, state: up, ipv4: {enabled: true, address: [{ip: 192.0.2.3, prefix-length: 24}]}}]
ovn: {bridge-mappings: [{localnet: tenantblue, state: absent}]}
`)
	if got := vsctl(t, "get", "open", ".", "external_ids:ovn-bridge-mappings"); got != `"physnet:br-ex"` {
		t.Errorf("a foreign mapping was lost: %s", got)
	}
	// The kernel has the card back.
	if err := eventually(func() error { return run("ping", "-c1", "-W1", "192.0.2.2") }); err != nil {
		t.Error(err)
	}
}

// failing counts how often it was asked.
func failing(asked *int) Probe {
	return Probe{Name: "api-server", Always: true, Check: func(context.Context) error { *asked++; return errors.New("no answer") }}
}

const cutOff = `
interfaces:
- name: br1
  type: linux-bridge
  state: up
  bridge: {port: [{name: eth1}]}
- {name: br-cut, type: ovs-bridge, state: up, bridge: {port: [{name: eth2}]}}
- {name: eth3, type: ethernet, state: down, mtu: 1280}
ovn: {bridge-mappings: [{localnet: cut, bridge: br-cut}, {localnet: physnet, state: absent}]}
`

// configured gives the cards what a rollback has to bring back.
func configured(t *testing.T) nmstate.State {
	t.Helper()
	cards(t, "eth1", "eth2", "eth3")
	for _, args := range [][]string{
		{"addr", "add", "192.0.2.1/24", "dev", "eth1"}, {"addr", "add", "2001:db8:1::1/64", "dev", "eth1", "nodad"},
		{"addr", "add", "203.0.113.1/24", "dev", "eth2"}, {"addr", "add", "2001:db8:3::1/64", "dev", "eth3", "nodad"},
		{"route", "add", "default", "via", "192.0.2.254", "proto", "static"}, {"route", "add", "10.0.0.0/8", "via", "203.0.113.254", "proto", "static"},
	} {
		must(t, "ip", args...)
	}
	return snapshot(t)
}

func sameAsBefore(t *testing.T, before nmstate.State) {
	t.Helper()
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("the node is not as before (-before +after):\n%s", diff)
	}
}

func TestAPolicyThatCutsTheNodeOffIsRolledBack(t *testing.T) {
	before := configured(t)
	asked := 0
	e := enactor(t, failing(&asked))
	err := e.Enact(t.Context(), "bad", 1, parse(t, cutOff))
	if err == nil || !strings.Contains(err.Error(), "rolling back desired state configuration: failed runnig probes after network changes: probe api-server: no answer") {
		t.Fatalf("got %v", err)
	}
	if asked < 2 {
		t.Errorf("the probe was asked %d times; it must be given time", asked)
	}
	sameAsBefore(t, before)
	if _, err := os.Stat(e.File); !os.IsNotExist(err) {
		t.Errorf("the checkpoint is left: %v", err)
	}
}

func TestAProbeThatFailsBeforeDoesNotCount(t *testing.T) {
	cards(t, "eth1")
	asked := 0
	p := failing(&asked)
	p.Always = false
	if err := enactor(t, p).Enact(t.Context(), "good", 1, parse(t, "interfaces: [{name: eth1, type: ethernet, state: up, mtu: 1300}]")); err != nil {
		t.Fatal(err)
	}
}

func TestAChangeThatCannotBeMadeIsRolledBack(t *testing.T) {
	before := configured(t)
	// Most kernels of test machines lack one of these types; a device name that the kernel refuses always fails.
	err := enactor(t).Enact(t.Context(), "bad", 1, parse(t, `
interfaces:
- {name: br1, type: linux-bridge, state: up, bridge: {port: [{name: eth1}]}}
- {name: eth3, type: ethernet, state: up, mac-address: "02:00:00:00:00:09"}
routes: {config: [{destination: 10.1.0.0/16, next-hop-interface: eth3, next-hop-address: 8.8.8.8}]}
`))
	if err == nil || !strings.Contains(err.Error(), "add route 10.1.0.0/16 via 8.8.8.8 dev eth3") {
		t.Fatalf("got %v", err)
	}
	sameAsBefore(t, before)
}

// runVictim enacts a policy, says so and waits in its probe until it is killed.
func runVictim() int {
	labDir = os.Getenv(victimVariable)
	node, err := connect()
	if err != nil {
		println(err.Error())
		return 1
	}
	desired, err := nmstate.Parse([]byte(cutOff))
	if err != nil {
		println(err.Error())
		return 1
	}
	e := &Enactor{Node: node, File: os.Getenv("CHECKPOINT"), Probes: []Probe{{Name: "never", Always: true, Check: func(ctx context.Context) error {
		os.Stdout.WriteString("changed\n")
		select {}
	}}}}
	if err := e.Enact(context.Background(), "bad", 7, desired.WithDefaults()); err != nil {
		println(err.Error())
	}
	return 1
}

func TestAKilledAgentsChangeIsRolledBackAtTheNextStart(t *testing.T) {
	before := configured(t)
	e := enactor(t)
	victim := exec.Command("/proc/self/exe")
	victim.Env = append(os.Environ(), victimVariable+"="+labDir, "CHECKPOINT="+e.File)
	victim.Stderr = os.Stderr
	stdout, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 16)); err != nil {
		t.Fatalf("the victim did not get to its probe: %v", err)
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait()
	if !exists("br1") {
		t.Fatal("the victim had changed nothing")
	}
	c, err := e.Recover(t.Context())
	if err != nil || c == nil || c.Policy != "bad" || c.Generation != 7 {
		t.Fatalf("recovered %+v, %v", c, err)
	}
	sameAsBefore(t, before)
	if c, err := e.Recover(t.Context()); c != nil || err != nil {
		t.Errorf("a second time: %+v, %v", c, err)
	}
}

func TestABrokenCheckpointIsSetAside(t *testing.T) {
	e := enactor(t)
	if err := os.WriteFile(e.File, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := e.Recover(t.Context()); c != nil || err != nil {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := os.Stat(e.File + ".failed"); err != nil {
		t.Error(err)
	}
}

// TestWhatTheKernelLacks: types that need a module are made, or refused with what to do.
func TestWhatTheKernelLacks(t *testing.T) {
	cards(t, "eth1")
	for _, c := range []struct{ name, document string }{
		{"dummy9", "interfaces: [{name: dummy9, type: dummy, state: up}]"},
		{"eth1.5", "interfaces: [{name: eth1.5, type: vlan, state: up, vlan: {base-iface: eth1, id: 5}}]"},
	} {
		err := enactor(t).Enact(t.Context(), "test", 1, parse(t, c.document))
		switch {
		case err == nil && exists(c.name):
			enact(t, "interfaces: [{name: "+c.name+", state: absent}]")
		case err == nil || !strings.Contains(err.Error(), "load its module"):
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestReportLeavesPodsOut(t *testing.T) {
	t.Cleanup(func() { _ = run("ip", "link", "del", "pv0123456789ab") })
	must(t, "ip", "link", "add", "pv0123456789ab", "type", "veth", "peer", "name", "podend")
	s := snapshot(t)
	if s.Find("pv0123456789ab", false) != nil {
		t.Error("a pod's device is reported")
	}
	if s.Find("br-int", true) == nil || s.Find("lo", false) == nil || s.Hostname.Running != "node-1" {
		t.Errorf("the report lacks something: %+v", s)
	}
}

// TestTheHostsOwnNamespaceIsRecognized: the test's namespace is that of its first process, as on a host.
func TestTheHostsOwnNamespaceIsRecognized(t *testing.T) {
	if !InRootNamespace() {
		t.Error("the namespace of the first process is not taken for the host's")
	}
}
