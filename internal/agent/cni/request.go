package cni

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"k8s.io/apimachinery/pkg/types"

	"patchbay/internal/agent/cni/shim"
)

// PodRef names one pod, not its successor of the same name.
type PodRef struct {
	Namespace, Name string
	UID             types.UID
}

func (r PodRef) String() string { return r.Namespace + "/" + r.Name }

// sandbox is what ADD, DEL and CHECK are about.
type sandbox struct {
	pod         PodRef
	containerID string
	netns       string
	ifName      string
}

// call is a checked request.
type call struct {
	command string
	conf    cnitypes.PluginConf
	sandbox sandbox
}

// Versions from which the specification has the command.
const (
	checkSince  = "0.4.0"
	statusSince = "1.1.0"
)

func parseRequest(r shim.Request) (call, error) {
	c := call{command: r.Command}
	if err := json.Unmarshal(r.Config, &c.conf); err != nil {
		return c, &shim.Error{Code: shim.CodeDecodingFailure, Msg: "the network configuration is not valid", Details: err.Error()}
	}
	if !slices.Contains(shim.SupportedVersions, c.conf.CNIVersion) {
		return c, &shim.Error{Code: shim.CodeIncompatibleVersion,
			Msg: fmt.Sprintf("CNI version %q is not supported; use one of %s", c.conf.CNIVersion, strings.Join(shim.SupportedVersions, ", "))}
	}
	switch r.Command {
	case "ADD", "DEL":
	case "CHECK":
		if err := c.needs(checkSince); err != nil {
			return c, err
		}
		if err := version.ParsePrevResult(&c.conf); err != nil {
			return c, &shim.Error{Code: shim.CodeDecodingFailure, Msg: "prevResult is not valid", Details: err.Error()}
		}
	case "STATUS", "GC":
		return c, c.needs(statusSince)
	default:
		return c, &shim.Error{Code: shim.CodeInvalidEnvironment, Msg: fmt.Sprintf("unknown CNI command %q", r.Command)}
	}
	var err error
	c.sandbox, err = parseSandbox(r)
	return c, err
}

func (c call) needs(since string) error {
	enough, err := version.GreaterThanOrEqualTo(c.conf.CNIVersion, since)
	if err == nil && enough {
		return nil
	}
	return &shim.Error{Code: shim.CodeIncompatibleVersion,
		Msg: fmt.Sprintf("CNI %s came with version %s; the network configuration says %s", c.command, since, c.conf.CNIVersion)}
}

// parseSandbox is lenient for DEL, which must succeed with whatever the runtime still knows.
func parseSandbox(r shim.Request) (sandbox, error) {
	pod := r.Pod()
	s := sandbox{pod: PodRef{pod.Namespace, pod.Name, types.UID(pod.UID)}, containerID: r.ContainerID, netns: r.Netns, ifName: r.IfName}
	if s.containerID == "" || s.ifName == "" {
		return s, invalidEnvironment("CNI_CONTAINERID and CNI_IFNAME must be set")
	}
	if r.Command == "DEL" {
		return s, nil
	}
	if s.pod.Namespace == "" || s.pod.Name == "" {
		return s, invalidEnvironment("CNI_ARGS must name the pod: K8S_POD_NAMESPACE and K8S_POD_NAME")
	}
	if s.netns == "" {
		return s, invalidEnvironment("CNI_NETNS must be set")
	}
	return s, nil
}

func invalidEnvironment(msg string) error {
	return &shim.Error{Code: shim.CodeInvalidEnvironment, Msg: msg}
}
