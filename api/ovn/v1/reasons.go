package v1

// Names that clients compare.
const (
	// Finalizer holds a network until nothing uses it; it is on the networks and on the attachment definitions made from them.
	Finalizer = "k8s.ovn.org/user-defined-network-protection"
	// PrimaryNamespaceLabel marks namespaces that have a primary network of their own. It is set when the namespace is created.
	PrimaryNamespaceLabel = "k8s.ovn.org/primary-user-defined-network"
	// NetworkLabel is on every attachment definition made from a network.
	NetworkLabel = "k8s.ovn.org/user-defined-network"

	// NetworkCreated is the condition that says whether the attachment definitions exist.
	NetworkCreated = "NetworkCreated"
	// NetworkAllocationSucceeded is the condition that says whether the nodes could set the network up.
	NetworkAllocationSucceeded = "NetworkAllocationSucceeded"

	ReasonDefinitionCreated   = "NetworkAttachmentDefinitionCreated"
	ReasonDefinitionDeleted   = "NetworkAttachmentDefinitionDeleted"
	ReasonSyncError           = "SyncError"                            // UserDefinedNetwork
	ReasonDefinitionSyncError = "NetworkAttachmentDefinitionSyncError" // ClusterUserDefinedNetwork
	ReasonAllocationSucceeded = "NetworkAllocationSucceeded"
	ReasonInternalError       = "InternalError"
)
