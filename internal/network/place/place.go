// Package place says on which nodes a virtual machine's ports have to be: where it runs, and where it goes. It is pure.
package place

import (
	"slices"

	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
)

// Launcher is a living pod of a machine, on a node.
type Launcher struct {
	Pod       string
	Node      string
	Migration types.UID // that the pod was made for; empty for the first
}

// Chassis is the machine's node, or while it moves the node it leaves and the one it goes to. Pods are given in the order in which
// they came.
//
// The new node is taken in as soon as a pod is there, so that the flows exist before the guest does; it is given up when the
// migration has failed. The old one is given up when the machine's status says that it has moved.
func Chassis(vmi *virtv1.VirtualMachineInstance, pods []Launcher) []string {
	source, ok := running(vmi, pods)
	if !ok {
		return nil
	}
	for _, p := range slices.Backward(pods) {
		if p.Migration != "" && p.Node != source.Node && p != source && !ended(vmi, p.Migration) && !left(vmi, p) {
			return []string{source.Node, p.Node}
		}
	}
	return []string{source.Node}
}

// running is the pod that the machine runs in: on the node that its status says, before there is one the first pod, and when
// that has ended the one that is left.
func running(vmi *virtv1.VirtualMachineInstance, pods []Launcher) (Launcher, bool) {
	if len(pods) == 0 {
		return Launcher{}, false
	}
	node := vmi.Status.NodeName
	if m := vmi.Status.MigrationState; m != nil && m.Completed && !m.Failed && node == m.SourceNode && m.TargetNode != "" {
		node = m.TargetNode
	}
	for _, p := range pods {
		if p.Node == node {
			return p, true
		}
	}
	return pods[0], true
}

// left tells whether a pod is what the machine has moved out of. It may have come by an earlier migration itself.
func left(vmi *virtv1.VirtualMachineInstance, p Launcher) bool {
	m := vmi.Status.MigrationState
	return m != nil && m.Completed && !m.Failed && p.Pod != "" && p.Pod == m.SourcePod
}

// ended tells whether a migration is over.
func ended(vmi *virtv1.VirtualMachineInstance, migration types.UID) bool {
	m := vmi.Status.MigrationState
	return m != nil && m.MigrationUID == migration && (m.Completed || m.Failed)
}
