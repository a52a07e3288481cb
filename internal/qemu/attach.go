package qemu

import (
	"errors"
	"fmt"

	virtv1 "kubevirt.io/api/core/v1"
)

// attach adds the device through which the guest sees the i-th disk.
func (b *builder) attach(i int, disk virtv1.Disk, from backing, boot uint) error {
	cdrom, bus := disk.CDRom != nil, busOf(disk)
	p := properties{{"id", DiskDevice(disk.Name)}}
	if from.file != "" {
		p.set("drive", DiskNode(i))
	}
	if boot != 0 {
		p.set("bootindex", boot)
	}
	if disk.Serial != "" {
		p.set("serial", disk.Serial)
	}
	if !cdrom {
		p = append(p, b.diskProperties(disk, from)...)
	}
	switch bus {
	case virtv1.DiskBusVirtio:
		return b.virtioDisk(disk, p)
	case virtv1.DiskBusSATA:
		return b.sataDisk(cdrom, p)
	case virtv1.DiskBusSCSI:
		return b.scsiDisk(cdrom, p)
	case virtv1.DiskBusUSB:
		return b.usbDisk(cdrom, p)
	}
	return fmt.Errorf("bus %q is not supported; use virtio, sata, scsi or usb", bus)
}

// busOf is the disk's bus. Disks are virtio unless the user says otherwise: the guests that know no virtio are those whose owners know it.
func busOf(disk virtv1.Disk) virtv1.DiskBus {
	switch {
	case disk.CDRom != nil && disk.CDRom.Bus != "":
		return disk.CDRom.Bus
	case disk.CDRom != nil:
		return virtv1.DiskBusSATA
	case disk.Disk != nil && disk.Disk.Bus != "":
		return disk.Disk.Bus
	}
	return virtv1.DiskBusVirtio
}

func (b *builder) diskProperties(disk virtv1.Disk, from backing) properties {
	p := properties{{"write-cache", from.writeCache(disk)}}
	p = append(p, errorPolicy(disk.ErrorPolicy)...)
	if from.shared {
		p.set("share-rw", true)
	}
	if size := disk.BlockSize; size != nil && size.Custom != nil {
		p.set("logical_block_size", size.Custom.Logical)
		p.set("physical_block_size", size.Custom.Physical)
		if size.Custom.DiscardGranularity != nil {
			p.set("discard_granularity", *size.Custom.DiscardGranularity)
		}
	}
	return p
}

// errorPolicy is what an I/O error of the host does to the guest. The default stops it, so that nothing is lost.
func errorPolicy(policy *virtv1.DiskErrorPolicy) properties {
	read, write := "stop", "stop"
	if policy != nil {
		switch *policy {
		case virtv1.DiskErrorPolicyIgnore:
			read, write = "ignore", "ignore"
		case virtv1.DiskErrorPolicyReport:
			read, write = "report", "report"
		case virtv1.DiskErrorPolicyEnospace:
			read, write = "report", "enospc"
		}
	}
	return properties{{"rerror", read}, {"werror", write}}
}

func (b *builder) virtioDisk(disk virtv1.Disk, p properties) error {
	if disk.CDRom != nil {
		return errors.New("a cdrom cannot be on the virtio bus; use sata or scsi")
	}
	var at place
	var err error
	if disk.Disk != nil && disk.Disk.PciAddress != "" {
		at, err = b.layout.at(disk.Disk.PciAddress, false)
	} else {
		at, err = b.layout.next(diskPort)
	}
	if err != nil {
		return err
	}
	p = append(p, virtioVersion(b.vmi, false)...)
	if isTrue(b.domain.Devices.BlockMultiQueue) {
		p.set("num-queues", b.vcpus())
	}
	b.device(append(p, at.properties()...), "virtio-blk-pci")
	return nil
}

func (b *builder) sataDisk(cdrom bool, p properties) error {
	if b.sata >= sataPorts {
		return fmt.Errorf("the SATA bus has %d ports; use virtio for more disks", sataPorts)
	}
	p.set("bus", fmt.Sprintf("ide.%d", b.sata))
	b.sata++
	b.device(p, either(cdrom, "ide-cd", "ide-hd"))
	return nil
}

func (b *builder) scsiDisk(cdrom bool, p properties) error {
	p.set("bus", scsiID+".0")
	p.set("lun", b.scsi)
	b.scsi++
	b.device(p, either(cdrom, "scsi-cd", "scsi-hd"))
	return nil
}

func (b *builder) usbDisk(cdrom bool, p properties) error {
	if cdrom {
		return errors.New("a cdrom cannot be on the usb bus; use sata or scsi")
	}
	p.set("bus", usbID+".0")
	b.device(p, "usb-storage")
	return nil
}

func either(yes bool, a, b string) string {
	if yes {
		return a
	}
	return b
}
