package qemu

import (
	"errors"
	"fmt"

	virtv1 "kubevirt.io/api/core/v1"
)

// refusal is a field that would change what the guest sees and that this package does not carry out.
type refusal struct {
	used bool
	path string
	hint string
}

// unsupported refuses what refusals finds in use.
func unsupported(vmi *virtv1.VirtualMachineInstance) error {
	var errs []error
	for _, field := range refusals(vmi) {
		if field.used {
			errs = append(errs, fmt.Errorf("%s is not supported: %s; remove it", field.path, field.hint))
		}
	}
	return errors.Join(append(errs, unsupportedPanic(&vmi.Spec.Domain.Devices))...)
}

// refusals lists the fields and whether a VMI uses them. The manual (docs/api.md) says the same to users; a test compares.
func refusals(vmi *virtv1.VirtualMachineInstance) []refusal {
	domain := &vmi.Spec.Domain
	d := &domain.Devices
	cpu := domain.CPU
	if cpu == nil {
		cpu = &virtv1.CPU{}
	}
	return []refusal{
		{vmi.Spec.Architecture != "" && vmi.Spec.Architecture != "amd64", "spec.architecture", "only amd64 guests run here"},
		{domain.LaunchSecurity != nil, "spec.domain.launchSecurity", "it needs processors with encrypted memory"},
		{d.TPM != nil && unlessFalse(d.TPM.Enabled), "spec.domain.devices.tpm", "there is no TPM emulator"},
		{len(d.GPUs) > 0, "spec.domain.devices.gpus", "host devices cannot be passed to guests"},
		{len(d.HostDevices) > 0, "spec.domain.devices.hostDevices", "host devices cannot be passed to guests"},
		{len(d.Filesystems) > 0, "spec.domain.devices.filesystems", "there is no virtiofs daemon; use a disk"},
		{d.Sound != nil, "spec.domain.devices.sound", "there is no sound device"},
		{d.ClientPassthrough != nil, "spec.domain.devices.clientPassthrough", "USB redirection is not offered"},
		{d.DownwardMetrics != nil, "spec.domain.devices.downwardMetrics", "metrics are not offered to guests"},
		{isTrue(d.AutoattachVSOCK), "spec.domain.devices.autoattachVSOCK", "guests have no vsock"},
		{d.Watchdog != nil && d.Watchdog.Diag288 != nil, "spec.domain.devices.watchdog.diag288", "use i6300esb"},
		{cpu.NUMA != nil, "spec.domain.cpu.numa", "the host's NUMA topology is not shown to guests"},
		{cpu.Realtime != nil, "spec.domain.cpu.realtime", "virtual CPUs are not scheduled in real time"},
		{domain.Firmware != nil && domain.Firmware.ACPI != nil, "spec.domain.firmware.acpi", "ACPI tables cannot be added"},
		{vmi.Annotations[virtv1.IgnitionAnnotation] != "", "the annotation " + virtv1.IgnitionAnnotation, "use cloud-init's config drive"},
	}
}

func unsupportedPanic(d *virtv1.Devices) error {
	for i, device := range d.PanicDevices {
		if device.Model != nil && *device.Model == virtv1.Hyperv {
			return fmt.Errorf("spec.domain.devices.panicDevices[%d].model: hyperv is not supported; use isa or pvpanic", i)
		}
	}
	return nil
}
