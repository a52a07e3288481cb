package qemu

import (
	"errors"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/protocol"
)

// efiVars is the disk that holds UEFI variables. No volume can have this name.
const efiVars = "_efi-vars"

func (b *builder) efi() *virtv1.EFI {
	if fw := b.domain.Firmware; fw != nil && fw.Bootloader != nil {
		return fw.Bootloader.EFI
	}
	return nil
}

// smm is system management mode: asked for, or needed to keep Secure Boot's variables from the guest.
func (b *builder) smm() bool {
	f := b.domain.Features
	asked := f != nil && f.SMM != nil && unlessFalse(f.SMM.Enabled)
	return asked || b.secureBoot()
}

// secureBoot is on unless it is turned off; the API's default for UEFI.
func (b *builder) secureBoot() bool { return b.efi() != nil && unlessFalse(b.efi().SecureBoot) }

// firmware adds UEFI and a kernel that is booted without firmware's help.
func (b *builder) firmware() error {
	if err := b.uefi(); err != nil {
		return field("spec.domain.firmware.bootloader.efi", err)
	}
	return field("spec.domain.firmware.kernelBoot", b.kernel())
}

func (b *builder) uefi() error {
	if b.efi() == nil {
		return nil
	}
	if isTrue(b.efi().Persistent) {
		return errors.New("variables that persist are not supported; remove persistent")
	}
	if b.facts.EFI == nil {
		return errors.New("the launcher's image holds no UEFI firmware; build it with the package ovmf, or use bios")
	}
	code, vars := b.facts.EFI.Code, b.facts.EFI.Vars
	if b.secureBoot() {
		code, vars = b.facts.EFI.SecureCode, b.facts.EFI.SecureVars
		if code == "" || vars == "" {
			return errors.New("the launcher's image holds no firmware with Secure Boot; set secureBoot: false")
		}
		b.add("-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	b.start.Disks = append(b.start.Disks, protocol.Disk{ID: efiVars, Kind: protocol.Overlay, Source: vars, SourceFormat: "raw"})
	b.add("-blockdev", properties{{"driver", "raw"}, {"node-name", "efi-code"}, {"read-only", true},
		{"file.driver", "file"}, {"file.filename", code}}.option(""))
	b.add("-blockdev", "driver=qcow2,node-name=efi-vars,file.driver=file,file.filename={disk:"+efiVars+"}")
	return nil
}

func (b *builder) kernel() error {
	fw := b.domain.Firmware
	if fw == nil || fw.KernelBoot == nil {
		return nil
	}
	boot := fw.KernelBoot
	switch {
	case boot.Container == nil && boot.KernelArgs == "":
		return nil
	case boot.Container == nil || boot.Container.KernelPath == "":
		return errors.New("initrdPath and kernelArgs need a kernel; set container.kernelPath")
	}
	b.start.KernelPath, b.start.InitrdPath = boot.Container.KernelPath, boot.Container.InitrdPath
	b.add("-kernel", "{kernel}")
	if b.start.InitrdPath != "" {
		b.add("-initrd", "{initrd}")
	}
	if boot.KernelArgs != "" {
		b.add("-append", boot.KernelArgs)
	}
	return nil
}
