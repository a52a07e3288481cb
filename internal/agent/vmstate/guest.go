package vmstate

import (
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/qemu/qga"
)

// RequiredCommands are those that a guest agent must know to be of use.
var RequiredCommands = []string{
	"guest-ping", "guest-get-time", "guest-info", "guest-shutdown", "guest-network-get-interfaces",
	"guest-get-fsinfo", "guest-get-host-name", "guest-get-users", "guest-get-timezone", "guest-get-osinfo",
}

// GuestOS is the guest agent's description as the API has it.
func GuestOS(os qga.OS) virtv1.VirtualMachineInstanceGuestOSInfo {
	return virtv1.VirtualMachineInstanceGuestOSInfo{
		Name:          os.Name,
		KernelRelease: os.KernelRelease,
		Version:       os.Version,
		PrettyName:    os.PrettyName,
		VersionID:     os.VersionID,
		KernelVersion: os.KernelVersion,
		Machine:       os.Machine,
		ID:            os.ID,
	}
}
