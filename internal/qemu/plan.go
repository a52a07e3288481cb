package qemu

import (
	"errors"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/protocol"
)

// Plan is how to start a virtual machine instance. The error of a field that is not supported names the field and what to do.
func Plan(vmi *virtv1.VirtualMachineInstance, facts Facts) (protocol.Start, error) {
	return protocol.Start{}, errors.New("not written yet")
}
