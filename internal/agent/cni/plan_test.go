package cni

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"patchbay/internal/golden"
	"patchbay/internal/podnetworks"
	"patchbay/internal/tenancy/attachment"
)

// planCase is one file of testdata/plan: the annotations of a pod, and the configurations of definitions that are not ours.
type planCase struct {
	Given    json.RawMessage            `json:"given"`
	Networks json.RawMessage            `json:"networks"`
	Default  string                     `json:"default"` // NAMESPACE/NAME of another plugin's network
	Configs  map[string]json.RawMessage `json:"configs"`
	Results  map[string]json.RawMessage `json:"results"` // of other plugins, by interface
}

// Each case shows what a pod's annotations become: devices, ports, requests to other plugins, the CNI result and network-status.
func TestPlan(t *testing.T) {
	files, err := os.ReadDir("testdata/plan")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(file.Name(), ".json"), func(t *testing.T) {
			data, err := os.ReadFile("testdata/plan/" + file.Name())
			if err != nil {
				t.Fatal(err)
			}
			golden.Check(t, "json", indent(t, describePlan(t, data)))
		})
	}
}

func describePlan(t *testing.T, data []byte) []byte {
	t.Helper()
	var c planCase
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	w, err := planned(c)
	if err != nil {
		out, _ := json.Marshal(map[string]string{"error": err.Error()})
		return out
	}
	wires := map[string]any{}
	for n, i := range w.record.Interfaces {
		if text, ok := c.Results[i.Name]; ok {
			result, err := current.NewResult(text)
			if err != nil {
				t.Fatal(err)
			}
			full, _ := current.GetResult(result)
			describe(&w.record.Interfaces[n], full)
		}
		if isVeth(i) {
			wires[i.Name] = map[string]any{"veth": vethOf(w.record, i), "port": portOf(w.record, i)}
		}
		if d, ok := w.delegates[i.Name]; ok {
			wires[i.Name] = map[string]any{"network": d.Network, "request": d.Request, "config": json.RawMessage(d.Config)}
		}
	}
	result, err := render(w.record, "1.1.0")
	if err != nil {
		t.Fatal(err)
	}
	status, err := renderStatus(w.record)
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(map[string]any{"wires": wires, "record": w.record, "result": result, "status": json.RawMessage(status)})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func planned(c planCase) (wiring, error) {
	s := sandbox{pod: PodRef{"red", "web", "u1"}, containerID: "c1", netns: "/run/netns/c1", ifName: "eth0"}
	annotations := map[string]string{podnetworks.PodAnnotation: string(c.Given)}
	var text string
	if json.Unmarshal(c.Networks, &text) != nil {
		text = string(c.Networks)
	}
	annotations["k8s.v1.cni.cncf.io/networks"] = text
	given, err := podnetworks.ParsePod(annotations)
	if err != nil {
		return wiring{}, err
	}
	selections, err := ParseSelections(annotations, "red")
	if err != nil {
		return wiring{}, err
	}
	configs := map[string]string{}
	for name, config := range c.Configs {
		configs[name] = string(config)
	}
	inside := []netip.Prefix{netip.MustParsePrefix("10.128.0.0/14"), netip.MustParsePrefix("172.30.0.0/16")}
	w := Wanted{Pod: s.pod, Given: given, Selections: selections}
	if w.Default, err = ParseDefault(map[string]string{attachment.DefaultNetworkAnnotation: c.Default}); err != nil {
		return wiring{}, err
	}
	if w.Default != nil {
		w.Default.Network = c.Default
	}
	return plan(planFor{s, w, configs, 1400, inside})
}
