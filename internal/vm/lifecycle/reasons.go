package lifecycle

// Reasons and texts of events and conditions, in the words that users search for.
const (
	reasonCreated       = "SuccessfulCreate"
	reasonDeleted       = "SuccessfulDelete"
	reasonFailedCreate  = "FailedCreate"
	reasonFailedDelete  = "FailedDelete"
	reasonFailedUpdate  = "FailedUpdate"
	reasonHotPlugFailed = "HotPlugNetworkInterfaceError"
	reasonStopped       = "Stopped"

	reasonNoInstance       = "VMINotExists"
	reasonRestartRequired  = "RestartRequired"
	reasonClaimNotFound    = "FailedPvcNotFound"
	reasonErrImagePull     = "ErrImagePull"
	reasonImagePullBackOff = "ImagePullBackOff"
	reasonUnschedulable    = "Unschedulable"
	reasonPaused           = "Paused"
	reasonNotPaused        = "NotPaused"
	reasonNodeUnresponsive = "NodeUnresponsive"

	textNoInstance      = "VMI does not exist"
	textRestartRequired = "a non-live-updatable field was changed in the template spec"
	textFewerSockets    = "Reduction of CPU socket count requires a restart"
	textTooManySockets  = "CPU sockets updated in template spec to a value higher than what's available"
	textNoPod           = "virt-launcher pod has not yet been scheduled"
	textPodTerminating  = "virt-launcher pod is terminating"
	textNoPodCondition  = "virt-launcher pod is missing the Ready condition"
	textGuestNotRunning = "Guest VM is not reported as running"
	textPaused          = "the virtual machine is paused"
	textNotPaused       = "the virtual machine is not paused"
	textShutDown        = "The VirtualMachineInstance was shut down."
	textCrashed         = "The VirtualMachineInstance crashed."
)
