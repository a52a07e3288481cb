package lifecycle

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

// agentLimit is how long a node stays in service without a heartbeat of its agent. Clocks of hosts may differ by part of it.
const agentLimit = 5 * time.Minute

// StepNode takes a node out of service for new machines when its agent is not heard of any more. The machines on it run on, and the
// agent's next heartbeat takes it back into service. A node whose agent writes no heartbeats at all is left alone.
func StepNode(now time.Time, node *corev1.Node) Decision {
	last, err := time.Parse(time.RFC3339, node.Annotations[virtv1.VirtHandlerHeartbeat])
	if err != nil || node.Labels[virtv1.NodeSchedulable] != "true" {
		return Decision{}
	}
	if wait := last.Add(agentLimit).Sub(now); wait > 0 {
		return Decision{After: wait}
	}
	to := node.DeepCopy()
	to.Labels[virtv1.NodeSchedulable] = "false"
	text := fmt.Sprintf("the agent was last heard of at %s; no new virtual machines are placed here until it is again", last.UTC().Format(time.RFC3339))
	return Decision{Actions: []Action{
		Patch{From: node, To: to},
		Event{Object: node, Type: corev1.EventTypeWarning, Reason: reasonNodeUnresponsive, Message: text},
	}}
}
