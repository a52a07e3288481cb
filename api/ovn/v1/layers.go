package v1

// Layer2Config is a network that is one switch for all nodes.
//
// +kubebuilder:validation:XValidation:rule="has(self.ipam) && has(self.ipam.mode) && self.ipam.mode != 'Enabled' || has(self.subnets)",message="Subnets is required with ipam.mode is Enabled or unset"
// +kubebuilder:validation:XValidation:rule="!has(self.ipam) || !has(self.ipam.mode) || self.ipam.mode != 'Disabled' || !has(self.subnets)",message="Subnets must be unset when ipam.mode is Disabled"
// +kubebuilder:validation:XValidation:rule="!has(self.ipam) || !has(self.ipam.mode) || self.ipam.mode != 'Disabled' || self.role == 'Secondary'",message="Disabled ipam.mode is only supported for Secondary network"
// +kubebuilder:validation:XValidation:rule="!has(self.joinSubnets) || self.role == 'Primary'",message="JoinSubnets is only supported for Primary network"
// +kubebuilder:validation:XValidation:rule="!has(self.subnets) || !has(self.mtu) || self.mtu >= 1280 || !self.subnets.exists(s, isCIDR(s) && cidr(s).ip().family() == 6)",message="MTU should be greater than or equal to 1280 when IPv6 subnet is used"
// +kubebuilder:validation:XValidation:rule="!has(self.defaultGatewayIPs) || self.role == 'Primary'",message="defaultGatewayIPs is only supported for Primary network"
// +kubebuilder:validation:XValidation:rule="!has(self.defaultGatewayIPs) || has(self.subnets) && self.defaultGatewayIPs.all(g, !isIP(g) || self.subnets.exists(s, isCIDR(s) && cidr(s).containsIP(g)))",message="defaultGatewayIPs must belong to one of the subnets specified in the subnets field"
// +kubebuilder:validation:XValidation:rule="!has(self.defaultGatewayIPs) || has(self.subnets) && size(self.defaultGatewayIPs) == size(self.subnets)",message="defaultGatewayIPs must be specified for all IP families"
// +kubebuilder:validation:XValidation:rule="!has(self.defaultGatewayIPs) || !has(self.infrastructureSubnets) || self.defaultGatewayIPs.all(g, !isIP(g) || self.infrastructureSubnets.exists(i, isCIDR(i) && cidr(i).containsIP(g)))",message="defaultGatewayIPs have to belong to infrastructureSubnets"
// +kubebuilder:validation:XValidation:rule="!has(self.reservedSubnets) || has(self.subnets)",message="reservedSubnets must be unset when subnets is unset"
// +kubebuilder:validation:XValidation:rule="!has(self.reservedSubnets) || self.role == 'Primary'",message="reservedSubnets is only supported for Primary network"
// +kubebuilder:validation:XValidation:rule="!has(self.reservedSubnets) || !has(self.subnets) || self.reservedSubnets.all(r, !isCIDR(r) || self.subnets.exists(s, isCIDR(s) && cidr(s).containsCIDR(r)))",message="reservedSubnets must be subnetworks of the networks specified in the subnets field"
// +kubebuilder:validation:XValidation:rule="!has(self.infrastructureSubnets) || has(self.subnets)",message="infrastructureSubnets must be unset when subnets is unset"
// +kubebuilder:validation:XValidation:rule="!has(self.infrastructureSubnets) || self.role == 'Primary'",message="infrastructureSubnets is only supported for Primary network"
// +kubebuilder:validation:XValidation:rule="!has(self.infrastructureSubnets) || !has(self.subnets) || self.infrastructureSubnets.all(i, !isCIDR(i) || self.subnets.exists(s, isCIDR(s) && cidr(s).containsCIDR(i)))",message="infrastructureSubnets must be subnetworks of the networks specified in the subnets field"
// +kubebuilder:validation:XValidation:rule="!has(self.infrastructureSubnets) || !has(self.reservedSubnets) || self.infrastructureSubnets.all(i, !isCIDR(i) || self.reservedSubnets.all(r, !isCIDR(r) || !cidr(i).containsCIDR(r) && !cidr(r).containsCIDR(i)))",message="infrastructureSubnets and reservedSubnets must not overlap"
type Layer2Config struct {
	Role Role `json:"role"`
	// MTU that pods see, in bytes; the cluster's when unset.
	// +optional
	// +kubebuilder:validation:Minimum=576
	// +kubebuilder:validation:Maximum=65536
	MTU int32 `json:"mtu,omitempty"`
	// Subnets that pods get addresses from, at most one per IP family.
	// +optional
	Subnets DualStackCIDRs `json:"subnets,omitempty"`
	// ReservedSubnets are parts of subnets that pods only get addresses from on request.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=25
	// +kubebuilder:validation:XValidation:rule="self.all(r, !isCIDR(r) || cidr(r) == cidr(r).masked())",message="reservedSubnets must be a masked network address (no host bits set)"
	ReservedSubnets []CIDR `json:"reservedSubnets,omitempty"`
	// InfrastructureSubnets are parts of subnets that only gateways get addresses from.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=4
	// +kubebuilder:validation:XValidation:rule="self.all(i, !isCIDR(i) || cidr(i) == cidr(i).masked())",message="infrastructureSubnets must be a masked network address (no host bits set)"
	InfrastructureSubnets []CIDR `json:"infrastructureSubnets,omitempty"`
	// DefaultGatewayIPs are the router's addresses, one per IP family; the first of each subnet when unset.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:XValidation:rule="size(self) != 2 || !isIP(self[0]) || !isIP(self[1]) || ip(self[0]).family() != ip(self[1]).family()",message="When 2 IPs are set, they must be from different IP families"
	DefaultGatewayIPs []IP `json:"defaultGatewayIPs,omitempty"`
	// JoinSubnets connect the network's routers; 100.65.0.0/16 and fd99::/64 when unset.
	// +optional
	JoinSubnets DualStackCIDRs `json:"joinSubnets,omitempty"`
	// +optional
	IPAM *IPAMConfig `json:"ipam,omitempty"`
}

// Layer3Config is a network with a routed subnet per node.
//
// +kubebuilder:validation:XValidation:rule="!has(self.joinSubnets) || self.role == 'Primary'",message="JoinSubnets is only supported for Primary network"
// +kubebuilder:validation:XValidation:rule="!has(self.mtu) || self.mtu >= 1280 || !self.subnets.exists(s, isCIDR(s.cidr) && cidr(s.cidr).ip().family() == 6)",message="MTU should be greater than or equal to 1280 when IPv6 subnet is used"
// +kubebuilder:validation:XValidation:rule="has(self.mtu) == has(oldSelf.mtu) && (!has(self.mtu) || self.mtu == oldSelf.mtu)",message="mtu is immutable"
// +kubebuilder:validation:XValidation:rule="has(self.joinSubnets) == has(oldSelf.joinSubnets) && (!has(self.joinSubnets) || self.joinSubnets == oldSelf.joinSubnets)",message="joinSubnets is immutable"
// +kubebuilder:validation:XValidation:rule="self.role != 'Secondary' || self.subnets == oldSelf.subnets",message="Subnets is immutable for Secondary role"
// +kubebuilder:validation:XValidation:rule="self.role != 'Secondary' || size(self.subnets) <= 2",message="Secondary network supports at most one subnet per IP family"
// +kubebuilder:validation:XValidation:rule="self.role != 'Secondary' || size(self.subnets) != 2 || !isCIDR(self.subnets[0].cidr) || !isCIDR(self.subnets[1].cidr) || cidr(self.subnets[0].cidr).ip().family() != cidr(self.subnets[1].cidr).ip().family()",message="When 2 CIDRs are set, they must be from different IP families"
type Layer3Config struct {
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="role is immutable"
	Role Role `json:"role"`
	// MTU that pods see, in bytes; the cluster's when unset.
	// +optional
	// +kubebuilder:validation:Minimum=576
	// +kubebuilder:validation:Maximum=65536
	MTU int32 `json:"mtu,omitempty"`
	// Subnets that nodes get slices of. A primary network may be given more of them later.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=400
	// +listType=atomic
	// +kubebuilder:validation:XValidation:rule="oldSelf.all(o, self.exists(n, n.cidr == o.cidr))",message="Removing existing subnets is not allowed"
	// +kubebuilder:validation:XValidation:rule="oldSelf.all(o, self.all(n, n.cidr != o.cidr || has(n.hostSubnet) == has(o.hostSubnet) && (!has(n.hostSubnet) || n.hostSubnet == o.hostSubnet)))",message="hostSubnet is immutable"
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, b.cidr == a.cidr))",message="Subnets with same CIDR are not allowed"
	// +kubebuilder:validation:XValidation:rule="!self.all(s, isCIDR(s.cidr)) || self.all(a, self.exists_one(b, cidr(a.cidr).containsCIDR(b.cidr)))",message="Subnets must not overlap or contain each other"
	Subnets []Layer3Subnet `json:"subnets"`
	// JoinSubnets connect the network's routers; 100.65.0.0/16 and fd99::/64 when unset.
	// +optional
	JoinSubnets DualStackCIDRs `json:"joinSubnets,omitempty"`
}

// Layer3Subnet is a range that nodes get slices of.
//
// +kubebuilder:validation:XValidation:rule="!has(self.hostSubnet) || !isCIDR(self.cidr) || self.hostSubnet > cidr(self.cidr).prefixLength()",message="HostSubnet must be smaller than CIDR subnet"
// +kubebuilder:validation:XValidation:rule="!has(self.hostSubnet) || !isCIDR(self.cidr) || cidr(self.cidr).ip().family() != 4 || self.hostSubnet < 32",message="HostSubnet must < 32 for ipv4 CIDR"
type Layer3Subnet struct {
	CIDR CIDR `json:"cidr"`
	// HostSubnet is the prefix length of one node's slice; 24 for IPv4 and 64 for IPv6 when unset.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=127
	HostSubnet int32 `json:"hostSubnet,omitempty"`
}

// LocalnetConfig is a physical network that every node reaches through a bridge of its own.
//
// +kubebuilder:validation:XValidation:rule="(!has(self.ipam) || !has(self.ipam.mode) || self.ipam.mode == 'Enabled') == has(self.subnets)",message="Subnets is required with ipam.mode is Enabled or unset, and forbidden otherwise"
// +kubebuilder:validation:XValidation:rule="!has(self.excludeSubnets) || has(self.subnets)",message="excludeSubnets must be unset when subnets is unset"
// +kubebuilder:validation:XValidation:rule="!has(self.excludeSubnets) || !has(self.subnets) || self.excludeSubnets.all(e, !isCIDR(e) || self.subnets.exists(s, isCIDR(s) && cidr(s).containsCIDR(e)))",message="excludeSubnets must be subnetworks of the networks specified in the subnets field"
// +kubebuilder:validation:XValidation:rule="!has(self.subnets) || !has(self.mtu) || self.mtu >= 1280 || !self.subnets.exists(s, isCIDR(s) && cidr(s).ip().family() == 6)",message="MTU should be greater than or equal to 1280 when IPv6 subnet is used"
type LocalnetConfig struct {
	// +kubebuilder:validation:XValidation:rule="self == 'Secondary'",message="Localnet topology is only supported for Secondary role"
	Role Role `json:"role"`
	// PhysicalNetworkName is the name that nodes map to a bridge.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="!self.contains(',') && !self.contains(':')",message="physicalNetworkName cannot contain `,` or `:` characters"
	PhysicalNetworkName string `json:"physicalNetworkName"`
	// Subnets that pods get addresses from, at most one per IP family.
	// +optional
	Subnets DualStackCIDRs `json:"subnets,omitempty"`
	// ExcludeSubnets are parts of subnets that others use.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=25
	ExcludeSubnets []CIDR `json:"excludeSubnets,omitempty"`
	// +optional
	IPAM *IPAMConfig `json:"ipam,omitempty"`
	// MTU that pods see, in bytes; 1500 when unset.
	// +optional
	// +kubebuilder:validation:Minimum=576
	// +kubebuilder:validation:Maximum=65536
	MTU int32 `json:"mtu,omitempty"`
	// +optional
	VLAN *VLANConfig `json:"vlan,omitempty"`
}

// VLANConfig says which VLAN of the physical network this is.
//
// +kubebuilder:validation:XValidation:rule="(self.mode == 'Access') == has(self.access)",message="vlan access config is required when vlan mode is 'Access', and forbidden otherwise"
type VLANConfig struct {
	// +kubebuilder:validation:Enum=Access
	Mode string `json:"mode"`
	// +optional
	Access *AccessVLANConfig `json:"access,omitempty"`
}

// AccessVLANConfig is the VLAN whose tag is added and removed at the edge.
type AccessVLANConfig struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4094
	ID int32 `json:"id"`
}

// IPAMConfig says how pods get addresses.
//
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:XValidation:rule="!has(self.lifecycle) || self.lifecycle != 'Persistent' || !has(self.mode) || self.mode == 'Enabled'",message="lifecycle Persistent is only supported when ipam.mode is Enabled"
type IPAMConfig struct {
	// Mode says whether the network gives out addresses; Enabled when unset.
	// +optional
	// +kubebuilder:validation:Enum=Enabled;Disabled
	Mode string `json:"mode,omitempty"`
	// Lifecycle Persistent keeps a virtual machine's addresses over restarts and migrations.
	// +optional
	// +kubebuilder:validation:Enum=Persistent
	Lifecycle string `json:"lifecycle,omitempty"`
}

// The values of IPAMConfig.
const (
	IPAMEnabled    = "Enabled"
	IPAMDisabled   = "Disabled"
	IPAMPersistent = "Persistent"
)

// CIDR is an address with a prefix length. Rules elsewhere are silent about one that does not parse: this one speaks.
//
// +kubebuilder:validation:MaxLength=43
// +kubebuilder:validation:XValidation:rule="isCIDR(self)",message="CIDR is invalid"
type CIDR string

// IP is an address.
//
// +kubebuilder:validation:MaxLength=39
// +kubebuilder:validation:XValidation:rule="isIP(self)",message="IP is invalid"
type IP string

// DualStackCIDRs are one range, or one of each IP family.
//
// +kubebuilder:validation:MinItems=1
// +kubebuilder:validation:MaxItems=2
// +kubebuilder:validation:XValidation:rule="size(self) != 2 || !isCIDR(self[0]) || !isCIDR(self[1]) || cidr(self[0]).ip().family() != cidr(self[1]).ip().family()",message="When 2 CIDRs are set, they must be from different IP families"
type DualStackCIDRs []CIDR
