package network

import "sigs.k8s.io/controller-runtime/pkg/client"

// Reasons of events.
const (
	reasonPodFailed       = "ErrorAllocatingPod" // the pod has no addresses
	reasonNodeFailed      = "ErrorAllocatingNodeSubnet"
	reasonDefinition      = "InvalidNetworkAttachmentDefinition"
	reasonOpenPorts       = "ErrorUpdatingOpenDefaultPorts" // the annotation is not readable; no port is open
	reasonPolicy          = "PolicyNotInForce"              // as a whole or in part
	reasonPolicyWaits     = "NetworkNotFound"               // that the policy is for
	reasonPolicySelectors = "SelectorsNotInForce"           // where a network gives no addresses
	reasonRefused         = "ErrorUpdatingOverlay"          // the overlay's database refused the object's rows
)

func (n *Network) warn(object client.Object, reason, format string, args ...any) {
	n.events.Eventf(object, nil, "Warning", reason, "Allocate", format, args...)
}
