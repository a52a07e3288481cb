package agent

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"patchbay/internal/agent/link"
)

// reasonNoFilter is the reason of the node's event when its kernel cannot keep workloads from posing as routers.
const reasonNoFilter = "RouterAdvertisementsNotDropped"

// workloads guards devices of pods and guests. A kernel that cannot do it is told once, with an event on the node, and then in
// the log.
func (h *Host) workloads() link.Workloads {
	recorder := h.Manager.GetEventRecorder("patchbay-agent")
	var once sync.Once
	return link.Workloads{Guard: h.Guard, Refused: func(_ context.Context, device string, err error) {
		h.Log.Warn("a workload can pose as an IPv6 router", "device", device, "error", err)
		once.Do(func() {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: h.Node, UID: types.UID(h.Node)}}
			recorder.Eventf(node, nil, corev1.EventTypeWarning, reasonNoFilter, reasonNoFilter,
				"pods and guests of this node can pose as IPv6 routers of their networks, because the kernel does not take the program that drops router advertisements: %v", err)
		})
	}}
}
