package nmstate

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// TestCaptureMovesTheDefaultRoute is the classic use: the addresses of whichever card has the default route move to a bridge.
func TestCaptureMovesTheDefaultRoute(t *testing.T) {
	captures := map[string]string{
		"default-gw":    `routes.running.destination=="0.0.0.0/0"`,
		"base":          `interfaces.name==capture.default-gw.routes.running.0.next-hop-interface`,
		"base-routes":   `routes.running.next-hop-interface==capture.default-gw.routes.running.0.next-hop-interface`,
		"bridge-routes": `capture.base-routes | routes.running.next-hop-interface:="br1"`,
		"removed":       `capture.base-routes | routes.running.state:="absent"`,
	}
	desired := `
interfaces:
- name: br1
  type: linux-bridge
  state: up
  ipv4: "{{ capture.base.interfaces.1.ipv4 }}"
  bridge: {port: [{name: "{{ capture.base.interfaces.1.name }}"}]}
routes:
  config: "{{ capture.bridge-routes.routes.running }}"
`
	rendered, states, err := Render(captures, nil, []byte(desired), node(t))
	if err != nil {
		t.Fatal(err)
	}
	want := `interfaces:
- bridge:
    port:
    - name: br-phys
  ipv4:
    address:
    - ip: 172.30.0.11
      prefix-length: 24
    enabled: true
  name: br1
  state: up
  type: linux-bridge
routes:
  config:
  - destination: 0.0.0.0/0
    next-hop-address: 172.30.0.1
    next-hop-interface: br1
    table-id: 254
`
	if diff := cmp.Diff(want, string(rendered)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(states) != len(captures) {
		t.Errorf("%d captures resolved, want %d", len(states), len(captures))
	}
	if !strings.Contains(string(states["removed"]), "state: absent") {
		t.Errorf("removed is %s", states["removed"])
	}
	// A second attempt sees another node, and gets what the first captured.
	again, _, err := Render(captures, states, []byte(desired), State{})
	if err != nil || string(again) != want {
		t.Errorf("the second attempt renders %s, %v", again, err)
	}
}

func TestCaptureRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		captures map[string]string
		desired  string
		want     string
	}{
		"cycle":           {map[string]string{"a": "interfaces.name==capture.b.x", "b": "interfaces.name==capture.a.x"}, "{}", "depends on itself"},
		"undefined":       {nil, `interfaces: [{name: "{{ capture.a.interfaces.0.name }}"}]`, "capture.a is not defined"},
		"no literal":      {map[string]string{"a": "interfaces.name==eth0"}, "{}", `"eth0" is neither a quoted text`},
		"no path":         {map[string]string{"a": `inter faces.name=="x"`}, "{}", "is no path"},
		"nothing there":   {map[string]string{"a": "no.such.thing"}, "{}", "the state has no no.such.thing"},
		"nothing found":   {map[string]string{"a": `interfaces.name=="nix"`}, `interfaces: [{name: "{{ capture.a.interfaces.0.name }}"}]`, "the list has 0 elements"},
		"part of a value": {map[string]string{"a": `interfaces.name=="lo"`}, `interfaces: [{name: "x{{ capture.a.interfaces.0.name }}"}]`, "must be the whole value"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := Render(c.captures, nil, []byte(c.desired), node(t)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestWithoutCaptureTheDocumentStays(t *testing.T) {
	text := "interfaces: [{name: eth1}] # as written\n"
	rendered, states, err := Render(nil, nil, []byte(text), State{})
	if err != nil || string(rendered) != text || states != nil {
		t.Errorf("%s, %v, %v", rendered, states, err)
	}
	var any map[string]any
	if err := yaml.Unmarshal(rendered, &any); err != nil {
		t.Error(err)
	}
}
