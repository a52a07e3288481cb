package vmstate

import (
	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

// Reasons of conditions that the node writes.
const (
	reasonSyncFailed      = "SyncFailed"
	reasonPlugFailed      = "HotPlugNetworkInterfaceError"
	reasonPausedByUser    = "PausedByUser"
	reasonPausedByMonitor = "PausedByMigrationMonitor"
	reasonPausedIOError   = "PausedIOError"
	reasonAddresses       = "AddressSourcesDisagree"
	reasonAgentCommands   = "MissingCommands"
	reasonBridgeOnPodNet  = virtv1.VirtualMachineInstanceReasonInterfaceNotMigratable
	reasonDisks           = virtv1.VirtualMachineInstanceReasonDisksNotMigratable
)

// Events about a virtual machine instance.
var (
	eventStarted    = Event{Type: corev1.EventTypeNormal, Reason: virtv1.Started.String(), Message: "VirtualMachineInstance started."}
	eventShutting   = Event{Type: corev1.EventTypeNormal, Reason: virtv1.ShuttingDown.String(), Message: "Signaled Graceful Shutdown"}
	eventKilled     = Event{Type: corev1.EventTypeNormal, Reason: virtv1.ShuttingDown.String(), Message: "Signaled Deletion"}
	eventShutDown   = Event{Type: corev1.EventTypeNormal, Reason: virtv1.Stopped.String(), Message: "The VirtualMachineInstance was shut down."}
	eventCrashed    = Event{Type: corev1.EventTypeWarning, Reason: virtv1.Stopped.String(), Message: "The VirtualMachineInstance crashed."}
	eventAccess     = Event{Type: corev1.EventTypeNormal, Reason: string(virtv1.AccessCredentialsSyncSuccess), Message: "Access credentials sync successful."}
	messageAgentOld = "This guest agent doesn't support required basic commands"
)

const (
	reasonAborted     = "the migration was cancelled"
	reasonTorn        = "the connection broke after the guest had begun to run on the target node and before all of its memory was there"
	reasonInterrupted = "the source node's agent was started again while the guest was on its way"
)

func eventMigrated(node string) Event {
	return Event{Type: corev1.EventTypeNormal, Reason: virtv1.Migrated.String(), Message: "The VirtualMachineInstance migrated to node " + node + "."}
}

func eventMigrationFailed(reason string) Event {
	return Event{Type: corev1.EventTypeWarning, Reason: "Migrated", Message: "VirtualMachineInstance migration failed: " + reason}
}

const messageAgentOffline = "Guest agent is offline"

func eventNoAccess(message string) Event {
	return Event{Type: corev1.EventTypeWarning, Reason: string(virtv1.AccessCredentialsSyncFailed), Message: "Access credentials sync failed: " + message}
}

func eventFailed(message string) Event {
	return Event{Type: corev1.EventTypeWarning, Reason: virtv1.SyncFailed.String(), Message: message}
}
