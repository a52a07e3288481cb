// Package protocol is what the node agent and a VM pod's launcher say to each other over the pod's unix socket, and where
// things lie inside the pod. It is imported by the launcher, which must stay small: the standard library only.
//
// The agent dials SocketName in the pod's run directory, sends one JSON Request on a line, with the file descriptors that
// the request names attached to its first byte (SCM_RIGHTS), and reads one JSON Response on a line. The launcher serves
// any number of connections; each carries one request.
package protocol

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"
)

// Where things lie inside the pod's file system.
const (
	RunDir     = "/run/patchbay" // sockets; an emptyDir in memory that the agent reaches from outside
	DiskDir    = "/disks"        // overlays, empty disks, seeds; an emptyDir
	VolumesDir = "/volumes"      // one directory (or block device) per volume of the VMI, by name

	// Names of the pod's volumes behind RunDir and DiskDir.
	RunVolume  = "patchbay-run"
	DiskVolume = "patchbay-disks"

	SocketName  = "launcher.sock" // this protocol
	QMPName     = "qmp.sock"      // QEMU's monitor; only the agent connects
	AgentName   = "qga.sock"      // the guest agent's channel
	ConsoleName = "serial0.sock"  // serial console
	VNCName     = "vnc.sock"
	SeedName    = "seed.iso"     // the cloud-init disk
	ConsoleLog  = "serial0.log"  // the last output of the serial console, at most ConsoleLogSize bytes
	ConsolePipe = "serial0.pipe" // named pipe from QEMU to the launcher, which keeps ConsoleLog
	PasstName   = "passt.sock"   // where QEMU waits for passt
	PasstLog    = "passt.log"    // what passt complains of, at most PasstLogSize bytes

	// PasstLogSize bounds PasstLog in bytes.
	PasstLogSize = 64 << 10

	// ConsoleLogSize bounds ConsoleLog in bytes: a guest must not fill the pod's memory by printing.
	ConsoleLogSize = 256 << 10

	// UserDataSuffix and NetworkDataSuffix follow a cloud-init volume's name: the directory in VolumesDir where its secretRef
	// (networkDataSecretRef) is mounted.
	UserDataSuffix    = "-userdata"
	NetworkDataSuffix = "-networkdata"
	// KernelBootVolume is the directory in VolumesDir where kernelBoot's image is mounted.
	KernelBootVolume = "kernel-boot"
)

// CredentialVolume is the name of the pod's volume that holds a secret of access credentials. Names of secrets may have dots and be
// longer than those of volumes.
func CredentialVolume(secret string) string {
	name := secret + "-access-cred"
	if len(name) <= 63 && !strings.Contains(name, ".") {
		return name
	}
	sum := sha1.Sum([]byte(name))
	return "access-cred-" + hex.EncodeToString(sum[:])
}

// Request is one of its fields.
type Request struct {
	Start  *Start  `json:"start,omitempty"`
	Status *Status `json:"status,omitempty"`
	Stop   *Stop   `json:"stop,omitempty"`
	Digest *Digest `json:"digest,omitempty"`
}

// Status asks for the state; it never changes anything.
type Status struct{}

// Stop ends QEMU: it is asked to quit, then killed. The guest is not told; an orderly shutdown goes through QMP first.
type Stop struct{}

// Digest asks what the sources of overlays hold. It takes as long as reading them does, the first time.
type Digest struct {
	Sources []string `json:"sources"` // as in Disk
}

// Start prepares the disks in order and then starts QEMU. Sent again with an equal ID it answers with the state and does nothing,
// so that an agent that was killed in between may repeat it.
type Start struct {
	ID    string `json:"id"`    // UID of the VMI
	Disks []Disk `json:"disks"` // what to prepare before the start
	Seed  *Seed  `json:"seed,omitempty"`
	// Args are QEMU's arguments without the program. The launcher replaces in them
	//	{fd:N}              the N-th descriptor of the request
	//	{disk:ID}, {seed}   the path of what was prepared
	//	{direct:ID}         on or off: whether the disk's file can bypass the page cache
	//	{kernel}, {initrd}  the path of KernelPath, InitrdPath
	// Commas of a path are doubled, as QEMU's options want, unless the argument is nothing but the placeholder.
	Args []string `json:"args"`
	// Setup are QMP commands, one JSON object each, that the launcher carries out in order before it answers. When a guest must not
	// run before that, Args hold -S and the last command is cont.
	Setup []json.RawMessage `json:"setup,omitempty"`
	// KernelPath and InitrdPath are paths inside the image mounted at KernelBootVolume; empty when the firmware boots from disk.
	KernelPath string `json:"kernelPath,omitempty"`
	InitrdPath string `json:"initrdPath,omitempty"`
	FDs        int    `json:"fds"` // descriptors attached to the request
	// UserFault is which of the descriptors is an open /dev/userfaultfd: QEMU gets what post-copy needs from it. nil: there is none.
	UserFault *int `json:"userFault,omitempty"`
	// Passt carries the packets of the NIC whose backend waits at PasstName; nil: there is none.
	Passt *Passt `json:"passt,omitempty"`
	// GraceSeconds is how long a guest may take to power down when the pod is told to end, before it is cut off.
	GraceSeconds int64 `json:"graceSeconds"`
}

// Passt is a process beside QEMU that turns a NIC's packets into connections of the pod, and the pod's into packets.
type Passt struct {
	// Args are its arguments, but for those that the launcher adds: how it reaches QEMU, where it complains, and ports.
	Args []string `json:"args"`
	// TCP and UDP are the ports of the pod that lead to the guest. When there are none of either, all but Except do, as far as the
	// pod's limit of open files allows: each takes a socket.
	TCP    []uint16 `json:"tcp,omitempty"`
	UDP    []uint16 `json:"udp,omitempty"`
	Except []uint16 `json:"except,omitempty"`
}

// DiskKind says how a disk's file comes to be.
type DiskKind string

const (
	Overlay DiskKind = "overlay" // qcow2 in DiskDir over a read-only file (containerDisk)
	Empty   DiskKind = "empty"   // qcow2 in DiskDir of SizeBytes (emptyDisk)
	File    DiskKind = "file"    // file in a volume, made raw with SizeBytes when absent and Create is set (hostDisk, PVC)
	Block   DiskKind = "block"   // block device of the pod
)

// Disk is one disk to prepare.
type Disk struct {
	ID     string   `json:"id"` // the volume's name
	Kind   DiskKind `json:"kind"`
	Source string   `json:"source"` // file or device; for Overlay a file, or a directory that holds exactly one
	// SourceFormat is the format of an Overlay's source: raw or qcow2. Empty looks at the file, which only an image's author can
	// have written; a file that a guest wrote must never be looked at, it could name any other file as its backing file.
	SourceFormat string `json:"sourceFormat,omitempty"`
	SizeBytes    int64  `json:"sizeBytes"` // 0: size of the source
	Create       bool   `json:"create,omitempty"`
}

// Seed is the cloud-init disk: an ISO 9660 image with the volume label Label.
type Seed struct {
	Label string `json:"label"` // cidata or config-2
	// Files maps a path in the image to its content.
	Files map[string][]byte `json:"files"`
	// FromDir maps a path in the image to candidate files in the pod, the first that exists is taken (secretRef: userdata or userData).
	// A path with no candidate on disk is an error.
	FromDir map[string][]string `json:"fromDir,omitempty"`
	// Image is the whole disk, ready-made, of a guest that arrives by migration; Files and FromDir are empty then.
	Image []byte `json:"image,omitempty"`
}

// State is where a launcher is in its life.
type State string

const (
	Waiting State = "Waiting" // no Start yet
	Running State = "Running" // QEMU runs
	Exited  State = "Exited"  // QEMU ended; the launcher ends soon after
)

// Response answers every request.
type Response struct {
	Error    string    `json:"error,omitempty"` // a sentence; empty when the request was carried out
	State    State     `json:"state"`
	ID       string    `json:"id,omitempty"`       // of the Start that was carried out
	PID      int       `json:"pid,omitempty"`      // QEMU's, in the pod
	ExitCode int       `json:"exitCode,omitempty"` // QEMU's, when Exited; -N when signal N killed it
	Since    time.Time `json:"since,omitzero"`     // of the state
	Digests  []string  `json:"digests,omitempty"`  // of a Digest's sources, in their order: SHA-256, hexadecimal
}
