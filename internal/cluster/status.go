package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/openvswitch"
	"patchbay/internal/cluster/supervise"
	"patchbay/internal/qemu"
)

// Status is the state of a cluster as found now; the supervisor need not run.
type Status struct {
	Name       string      `json:"name"`
	Healthy    bool        `json:"healthy"`
	API        string      `json:"api"`        // as seen from the host
	Kubeconfig string      `json:"kubeconfig"` // file
	Directory  string      `json:"directory"`
	Datapath   string      `json:"datapath"` // "kernel" or "userspace"
	MTU        int         `json:"mtu"`
	Nodes      []Node      `json:"nodes"`
	Components []Component `json:"components"`
}

// Node is one node as the API server knows it.
type Node struct {
	Name  string `json:"name"`
	IPv4  string `json:"ipv4"`
	IPv6  string `json:"ipv6"`
	Ready bool   `json:"ready"`
	// Accelerator is what executes guest code: "kvm" or "tcg" (emulation); empty until the node's agent has said so.
	Accelerator string `json:"accelerator,omitempty"`
	Message     string `json:"message,omitempty"`
}

// Component is one process or step.
type Component struct {
	Name     string    `json:"name"`
	Node     string    `json:"node,omitempty"` // empty for the control plane
	PID      int       `json:"pid,omitempty"`
	Healthy  bool      `json:"healthy"`
	Phase    string    `json:"phase"`
	Since    time.Time `json:"since,omitzero"` // start of the process
	Restarts int       `json:"restarts"`
	Message  string    `json:"message,omitempty"`
	Log      string    `json:"log,omitempty"`
}

// ReadStatus asks every component for its health.
func ReadStatus(ctx context.Context, c layout.Cluster) (Status, error) {
	spec, err := readSpec(c)
	if err != nil {
		return Status{}, err
	}
	units, err := unitsOf(c, spec, newProxy(c, spec.APIPort, slog.New(slog.DiscardHandler)))
	if err != nil {
		return Status{}, err
	}
	s := Status{
		Name: c.Name, API: fmt.Sprintf("https://127.0.0.1:%d", spec.APIPort), Kubeconfig: c.Kubeconfig(), Directory: c.Dir(), MTU: spec.MTU,
		Datapath: datapath(ctx, c), Components: make([]Component, len(units)+1),
	}
	s.Components[0] = supervisorStatus(c)
	var wg sync.WaitGroup
	for i, u := range units {
		wg.Go(func() { s.Components[i+1] = componentStatus(ctx, c, u) })
	}
	wg.Go(func() { s.Nodes = nodeStatuses(ctx, c, spec) })
	wg.Wait()
	s.Healthy = s.healthy()
	return s, nil
}

func (s Status) healthy() bool {
	for _, component := range s.Components {
		if !component.Healthy {
			return false
		}
	}
	for _, node := range s.Nodes {
		if !node.Ready {
			return false
		}
	}
	return true
}

func componentStatus(ctx context.Context, c layout.Cluster, u supervise.Unit) Component {
	out := Component{Name: u.Name, Node: u.Node}
	state, err := supervise.ReadState(c.Run(), u.Name)
	if err != nil {
		out.Message = err.Error()
		return out
	}
	out.Phase, out.Restarts, out.Message, out.Log = string(state.Phase), state.Restarts, state.Message, state.Log
	if len(u.Command) == 0 {
		out.Healthy = state.Phase == supervise.Ready && out.probe(ctx, u)
		return out
	}
	if !state.Process.Alive() {
		out.Phase, out.Message = "Dead", orText(state.Message, "the process is gone: "+orText(state.LastExit, "killed while no supervisor ran"))
		return out
	}
	out.PID, out.Since = state.Process.PID, state.Process.Started
	out.Healthy = out.probe(ctx, u)
	return out
}

// probe asks for the component's health now, and keeps the reason when it is bad.
func (c *Component) probe(ctx context.Context, u supervise.Unit) bool {
	if u.Probe == nil {
		c.Message = ""
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := u.Probe(ctx); err != nil {
		c.Message = err.Error()
		return false
	}
	c.Message = ""
	return true
}

func supervisorStatus(c layout.Cluster) Component {
	out := Component{Name: supervisorUnit, Log: supervise.LogPath(c.Logs(), supervisorUnit)}
	process := supervisorProcess(c)
	if process == nil {
		out.Phase, out.Message = "Dead", "the supervisor does not run: nothing is started again until `patchbay up`"
		return out
	}
	out.Phase, out.Healthy, out.PID, out.Since = string(supervise.Ready), true, process.PID, process.Started
	return out
}

func nodeStatuses(ctx context.Context, c layout.Cluster, spec Spec) []Node {
	client, err := apiClient(c)
	var known map[string]*corev1.Node
	if err == nil {
		known, err = listNodes(ctx, client)
	}
	var nodes []Node
	for _, node := range c.Nodes(spec.Nodes) {
		out := Node{Name: node.Name, IPv4: node.IPv4().String(), IPv6: node.IPv6().String()}
		problem := err
		if problem == nil {
			problem = nodeReady(known[node.Name])
		}
		if n := known[node.Name]; n != nil {
			out.Accelerator = n.Labels[qemu.AcceleratorLabel]
		}
		if problem != nil {
			out.Message = problem.Error()
		}
		out.Ready = problem == nil
		nodes = append(nodes, out)
	}
	return nodes
}

func datapath(ctx context.Context, c layout.Cluster) string {
	kind, err := openvswitch.ReadDatapath(ctx, "unix:"+c.Node(1).OVSSocket())
	switch {
	case err != nil:
		return "unknown"
	case kind == "netdev":
		return "userspace"
	default:
		return "kernel"
	}
}

func orText(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
}
