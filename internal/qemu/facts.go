package qemu

import (
	"net"
	"time"
)

// DefaultMachine is the machine type of a VM that names none (or only "q35"): a versioned one, so that the guest's hardware
// does not change with QEMU. It is the newest of Debian 12's QEMU.
const DefaultMachine = "pc-q35-7.2"

// Accelerator is what executes the guest's instructions.
type Accelerator string

const (
	KVM Accelerator = "kvm"
	TCG Accelerator = "tcg" // software emulation
)

// Facts are what Plan cannot read from the virtual machine instance.
type Facts struct {
	Accelerator Accelerator
	// NICs are the network cards as the agent wired them, by interface name; interfaces that are absent need none.
	NICs []NIC
	// Claims are the volumes backed by a PersistentVolumeClaim or DataVolume, by volume name.
	Claims map[string]Claim
	// PublicKeys are the SSH keys of access credentials that travel in cloud-init's meta-data.
	PublicKeys []string
	// EFI is the firmware in the launcher's image; nil when it holds none.
	EFI *EFI
	// Now places guests whose clock has an offset or a time zone; others do not need it.
	Now time.Time
	// Ports is the number of PCI root ports a migration target must have, as its source has them; 0 lets Plan choose.
	Ports int
	// Incoming makes a migration target: QEMU waits for migrate-incoming, and the guest for cont.
	Incoming bool
	// Seed is the cloud-init disk that the guest has, on a migration target: one made anew would differ.
	Seed []byte
}

// NIC is one wired network card.
type NIC struct {
	Name string           // of the interface in the VMI
	MAC  net.HardwareAddr // that the guest sees
	MTU  int              // bytes; 0 leaves the guest's default
	// FDs are the tap's descriptors, one per queue, as positions among those sent with Start.
	FDs []int
	// VhostFDs are opened /dev/vhost-net descriptors, as many as FDs, or none.
	VhostFDs []int
	// Socket is the path in the pod of a stream socket where QEMU waits for what takes the place of a tap (passt); FDs is empty then.
	Socket string
	// Offloads says that the other side of the tap handles partial checksums and segments larger than the MTU. Userspace OVS does not.
	Offloads bool
	// LinkDown starts the NIC without carrier.
	LinkDown bool
	// Port is the root port the NIC must sit in (a migration target copies its source); 0 lets Plan choose.
	Port int
}

// Claim is what is known about a PersistentVolumeClaim.
type Claim struct {
	Block     bool  // volumeMode Block
	SizeBytes int64 // capacity; the size of disk.img when it has to be made
}

// EFI are paths of UEFI firmware in the launcher's image.
type EFI struct {
	Code, Vars             string
	SecureCode, SecureVars string // with Secure Boot and enrolled keys; empty when absent
}
