package admission

import "strings"

// The users that Patchbay's own processes authenticate as.
const (
	ControllerUser  = "patchbay:controller"
	agentUserPrefix = "patchbay:agent:"
)

// Requester is the name of the user who asks for a change.
type Requester string

// Controller reports whether the cluster's controller asks.
func (r Requester) Controller() bool { return r == ControllerUser }

// Node is the node whose agent asks, empty when it is someone else.
func (r Requester) Node() string {
	node, ok := strings.CutPrefix(string(r), agentUserPrefix)
	if !ok {
		return ""
	}
	return node
}

// Ours reports whether a process of Patchbay asks.
func (r Requester) Ours() bool { return r.Controller() || r.Node() != "" }
