package delegate

import (
	"strings"
	"testing"
)

func TestTypeOf(t *testing.T) {
	cases := map[string]struct{ config, want, err string }{
		"plugin":        {`{"cniVersion":"0.3.1","name":"n","type":"bridge"}`, "bridge", ""},
		"list":          {`{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"macvlan"},{"type":"tuning"}]}`, "macvlan", ""},
		"empty":         {" \n", "", "spec.config is empty"},
		"not JSON":      {"type: bridge", "", "spec.config is not JSON"},
		"no type":       {`{"name":"n"}`, "", "spec.config has no type"},
		"empty list":    {`{"name":"n","plugins":[]}`, "", "no plugins in its list"},
		"list of words": {`{"name":"n","plugins":["bridge"]}`, "", "plugin 0 of the list has no type"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := TypeOf([]byte(c.config))
			if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestComplete(t *testing.T) {
	cases := map[string]struct {
		attachment Attachment
		want, err  string
	}{
		"a plugin becomes a list with the definition's name": {
			Attachment{Network: "red/lan", Config: []byte(`{"cniVersion":"0.3.1","type":"bridge","own":{"key":1}}`)},
			`{"cniVersion":"0.3.1","name":"lan","plugins":[{"cniVersion":"0.3.1","name":"lan","own":{"key":1},"type":"bridge"}]}`, "",
		},
		"arguments reach every plugin": {
			Attachment{Network: "red/lan", Config: []byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a","args":{"x":1}},{"type":"b"}]}`),
				Request: Request{Args: map[string]any{"key": "value"}}},
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"args":{"cni":{"key":"value"},"x":1},"type":"a"},{"args":{"cni":{"key":"value"}},"type":"b"}]}`, "",
		},
		"a bad MAC address": {
			Attachment{Network: "red/lan", Config: []byte(`{"type":"bridge"}`), Request: Request{MAC: "02:00"}}, "", `"02:00" is not a MAC address`,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := complete(c.attachment)
			if string(got) != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %s, %v", got, err)
			}
		})
	}
}

// What a plugin is told of a request depends on what it declares; the runtime sorts that out.
func TestRuntime(t *testing.T) {
	e := entry{container: "c", iface: "net1", Netns: "/n", Request: Request{MAC: "02:00:00:00:00:01", IPs: []string{"10.0.0.1/24"}}}
	got := e.runtime()
	if got.CapabilityArgs["mac"] != "02:00:00:00:00:01" || len(got.CapabilityArgs) != 2 || got.IfName != "net1" || got.ContainerID != "c" {
		t.Errorf("%+v", got)
	}
}

func TestNoMaster(t *testing.T) {
	for config, want := range map[string]string{
		`{"type":"macvlan","master":"no-such-card"}`:                        `; this node has no interface "no-such-card", which the definition names as master`,
		`{"type":"macvlan","master":"no-such-card","linkInContainer":true}`: "",
		`{"type":"macvlan","master":"lo"}`:                                  "",
		`{"type":"bridge"}`:                                                 "",
	} {
		if got := noMaster([]byte(config)); got != want {
			t.Errorf("%s: %q", config, got)
		}
	}
}
