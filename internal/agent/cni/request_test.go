package cni

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"patchbay/internal/agent/cni/shim"
)

func request(command string, conf any) shim.Request {
	data, err := json.Marshal(conf)
	if err != nil {
		panic(err)
	}
	return shim.Request{Command: command, ContainerID: "c1", Netns: "/run/netns/c1", IfName: "eth0",
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=red;K8S_POD_NAME=web;K8S_POD_UID=u1", Config: data}
}

func parsed(t *testing.T, command string, conf any) call {
	t.Helper()
	c, err := parseRequest(request(command, conf))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParseRequest(t *testing.T) {
	c := parsed(t, "ADD", map[string]string{"cniVersion": "1.1.0", "name": "n"})
	want := sandbox{pod: PodRef{"red", "web", "u1"}, containerID: "c1", netns: "/run/netns/c1", ifName: "eth0"}
	if c.sandbox != want {
		t.Errorf("got %+v, want %+v", c.sandbox, want)
	}
	gc := parsed(t, "GC", json.RawMessage(`{"cniVersion":"1.1.0","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}`))
	if len(gc.conf.ValidAttachments) != 1 || gc.conf.ValidAttachments[0].ContainerID != "a" {
		t.Errorf("valid attachments: %+v", gc.conf.ValidAttachments)
	}
}

func TestParseRequestRefuses(t *testing.T) {
	version := func(v string) json.RawMessage { return json.RawMessage(`{"cniVersion":"` + v + `"}`) }
	good := version("1.1.0")
	cases := map[string]struct {
		request shim.Request
		code    uint
		msg     string
	}{
		"old version":      {request("ADD", version("0.2.0")), shim.CodeIncompatibleVersion, "0.2.0"},
		"no version":       {request("ADD", version("")), shim.CodeIncompatibleVersion, "use one of"},
		"broken config":    {shim.Request{Command: "ADD", Config: json.RawMessage("{")}, shim.CodeDecodingFailure, "not valid"},
		"early CHECK":      {request("CHECK", version("0.3.1")), shim.CodeIncompatibleVersion, "came with version 0.4.0"},
		"early GC":         {request("GC", version("1.0.0")), shim.CodeIncompatibleVersion, "came with version 1.1.0"},
		"early STATUS":     {request("STATUS", version("0.4.0")), shim.CodeIncompatibleVersion, "came with version 1.1.0"},
		"unknown command":  {request("MAKE", good), shim.CodeInvalidEnvironment, "MAKE"},
		"no container":     {shim.Request{Command: "DEL", IfName: "eth0", Config: good}, shim.CodeInvalidEnvironment, "CNI_CONTAINERID"},
		"no pod":           {shim.Request{Command: "ADD", ContainerID: "c", IfName: "eth0", Netns: "/n", Config: good}, shim.CodeInvalidEnvironment, "K8S_POD_NAME"},
		"bad prevResult":   {request("CHECK", json.RawMessage(`{"cniVersion":"1.1.0","prevResult":{"ips":[1]}}`)), shim.CodeDecodingFailure, "prevResult"},
		"without netns":    {shim.Request{Command: "ADD", ContainerID: "c", IfName: "eth0", Args: "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b", Config: good}, shim.CodeInvalidEnvironment, "CNI_NETNS"},
		"without ifname":   {shim.Request{Command: "ADD", ContainerID: "c", Config: good}, shim.CodeInvalidEnvironment, "CNI_IFNAME"},
		"config is a list": {request("ADD", []int{1}), shim.CodeDecodingFailure, "not valid"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := parseRequest(c.request)
			var coded *shim.Error
			if !errors.As(err, &coded) || coded.Code != c.code || !strings.Contains(coded.Error(), c.msg) {
				t.Errorf("got %v, want code %d and %q", err, c.code, c.msg)
			}
		})
	}
}

// DEL must succeed with whatever the runtime still knows.
func TestParseDELNeedsOnlyTheContainer(t *testing.T) {
	r := shim.Request{Command: "DEL", ContainerID: "c", IfName: "eth0", Config: json.RawMessage(`{"cniVersion":"0.3.1"}`)}
	if _, err := parseRequest(r); err != nil {
		t.Error(err)
	}
}
