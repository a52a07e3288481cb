package qemu

import (
	"errors"
	"fmt"
	"path"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/protocol"
)

// DiskDevice is the id in QEMU of a disk's device.
func DiskDevice(name string) string { return "disk-" + name }

// DiskNode is the name in QEMU of the block node under the i-th disk of the spec. Names are short in QEMU, so it cannot be the disk's.
func DiskNode(i int) string { return fmt.Sprintf("disk%d", i) }

const (
	scsiID = "scsi0"
	usbID  = "usb0"
	// sataPorts is what the board's AHCI controller has.
	sataPorts = 6
)

// backing is where a disk's bytes are.
type backing struct {
	file     string // a placeholder of the launcher
	qcow2    bool
	device   bool // a block device
	readOnly bool
	shared   bool
	// lasting is false for disks that end with the pod. Their guest's flushes need not reach the disk, and the page cache is welcome:
	// guests of one image share its pages.
	lasting bool
	// direct is the launcher's word on whether the file can bypass the page cache.
	direct string
	seed   bool
}

// disks adds the disks in the order of the spec.
func (b *builder) disks() error {
	boots := b.bootOrder()
	for i, disk := range b.domain.Devices.Disks {
		if err := b.disk(i, disk, boots[disk.Name]); err != nil {
			return fmt.Errorf("spec.domain.devices.disks[%d] (%s): %w", i, disk.Name, err)
		}
	}
	return nil
}

// bootOrder is the place of each disk in the firmware's search; 0 keeps it out. Without any order in the spec the disks are tried
// as they are listed.
func (b *builder) bootOrder() map[string]uint {
	order, explicit := map[string]uint{}, false
	for _, iface := range b.domain.Devices.Interfaces {
		explicit = explicit || iface.BootOrder != nil
	}
	for _, disk := range b.domain.Devices.Disks {
		if disk.BootOrder != nil {
			order[disk.Name], explicit = *disk.BootOrder, true
		}
	}
	if explicit {
		return order
	}
	for i, disk := range b.domain.Devices.Disks {
		if v := b.volume(disk.Name); v != nil && v.CloudInitNoCloud == nil && v.CloudInitConfigDrive == nil {
			order[disk.Name] = uint(i) + 1
		}
	}
	return order
}

func (b *builder) volume(name string) *virtv1.Volume {
	for i := range b.vmi.Spec.Volumes {
		if b.vmi.Spec.Volumes[i].Name == name {
			return &b.vmi.Spec.Volumes[i]
		}
	}
	return nil
}

func (b *builder) disk(i int, disk virtv1.Disk, boot uint) error {
	from := &backing{}
	if volume := b.volume(disk.Name); volume != nil {
		prepare, source, err := b.source(volume)
		if err != nil {
			return fmt.Errorf("volume %s: %w", volume.Name, err)
		}
		from = &source
		if prepare != nil {
			b.start.Disks = append(b.start.Disks, *prepare)
		}
	} else if disk.CDRom == nil {
		return errors.New("there is no volume of this name; add one")
	}
	if err := b.checkDisk(disk); err != nil {
		return err
	}
	from.readOnly = from.readOnly || readOnly(disk)
	from.shared = from.shared || isTrue(disk.Shareable)
	if from.file != "" {
		node, err := from.node(DiskNode(i), disk)
		if err != nil {
			return err
		}
		b.devices = append(b.devices, "-blockdev", node)
	}
	return b.attach(i, disk, *from, boot)
}

func (b *builder) checkDisk(disk virtv1.Disk) error {
	switch {
	case disk.LUN != nil:
		return errors.New("lun is not supported; use disk")
	case disk.BlockSize != nil && disk.BlockSize.MatchVolume != nil:
		return errors.New("blockSize.matchVolume is not supported; use blockSize.custom")
	case isTrue(disk.ChangedBlockTracking):
		return errors.New("changedBlockTracking is not supported; remove it")
	case disk.CDRom != nil && disk.CDRom.Tray == virtv1.TrayStateOpen:
		return errors.New("an open tray is not supported; remove tray")
	}
	return nil
}

func readOnly(disk virtv1.Disk) bool {
	switch {
	case disk.CDRom != nil:
		return unlessFalse(disk.CDRom.ReadOnly)
	case disk.Disk != nil:
		return disk.Disk.ReadOnly
	}
	return false
}

// source is what the launcher prepares for a volume, and what QEMU opens.
func (b *builder) source(volume *virtv1.Volume) (*protocol.Disk, backing, error) {
	mounted := path.Join(protocol.VolumesDir, volume.Name)
	disk := protocol.Disk{ID: volume.Name}
	file, direct := "{disk:"+volume.Name+"}", "{direct:"+volume.Name+"}"
	switch v := volume.VolumeSource; {
	case v.ContainerDisk != nil:
		disk.Kind, disk.Source = protocol.Overlay, containerDiskPath(volume)
		return &disk, backing{file: file, qcow2: true}, nil
	case v.EmptyDisk != nil:
		disk.Kind, disk.SizeBytes = protocol.Empty, v.EmptyDisk.Capacity.Value()
		return &disk, backing{file: file, qcow2: true}, nil
	case v.HostDisk != nil:
		disk.Kind, disk.Source = protocol.File, path.Join(mounted, path.Base(v.HostDisk.Path))
		disk.Create, disk.SizeBytes = v.HostDisk.Type == virtv1.HostDiskExistsOrCreate, v.HostDisk.Capacity.Value()
		return &disk, backing{file: file, lasting: true, direct: direct, shared: isTrue(v.HostDisk.Shared)}, nil
	case v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.Hotpluggable, v.DataVolume != nil && v.DataVolume.Hotpluggable:
		return nil, backing{}, errors.New("volumes that are plugged while the guest runs are not supported; remove hotpluggable and restart the VM")
	case v.PersistentVolumeClaim != nil:
		from, err := b.claim(&disk, mounted, file, direct)
		from.readOnly = v.PersistentVolumeClaim.ReadOnly
		return &disk, from, err
	case v.DataVolume != nil:
		from, err := b.claim(&disk, mounted, file, direct)
		return &disk, from, err
	case v.Ephemeral != nil && v.Ephemeral.PersistentVolumeClaim != nil:
		if _, err := b.claim(&disk, mounted, file, direct); err != nil {
			return nil, backing{}, err
		}
		return &protocol.Disk{ID: volume.Name, Kind: protocol.Overlay, Source: disk.Source, SourceFormat: "raw"}, backing{file: file, qcow2: true}, nil
	case v.CloudInitNoCloud != nil, v.CloudInitConfigDrive != nil:
		return nil, backing{file: "{seed}", readOnly: true, seed: true}, nil
	}
	return nil, backing{}, errors.New("this kind of volume is not supported; use containerDisk, persistentVolumeClaim, dataVolume, emptyDisk, hostDisk, ephemeral or cloud-init")
}

// containerDiskPath is where a container disk lies in the pod: a file, or the directory that holds it.
func containerDiskPath(volume *virtv1.Volume) string {
	mounted := path.Join(protocol.VolumesDir, volume.Name)
	if within := volume.ContainerDisk.Path; within != "" {
		return path.Join(mounted, path.Join("/", within))
	}
	return path.Join(mounted, "disk")
}

func (b *builder) claim(disk *protocol.Disk, mounted, file, direct string) (backing, error) {
	claim, known := b.facts.Claims[disk.ID]
	if !known {
		return backing{}, errors.New("its claim is not bound yet")
	}
	if claim.Block {
		disk.Kind, disk.Source = protocol.Block, mounted
		return backing{file: file, device: true, lasting: true, direct: direct}, nil
	}
	disk.Kind, disk.Source = protocol.File, path.Join(mounted, "disk.img")
	disk.Create, disk.SizeBytes = true, claim.SizeBytes
	return backing{file: file, lasting: true, direct: direct}, nil
}

// node is the block node that reads and writes the backing.
func (f backing) node(name string, disk virtv1.Disk) (string, error) {
	driver, file := "raw", "file"
	if f.qcow2 {
		driver = "qcow2"
	}
	if f.device {
		file = "host_device"
	}
	p := properties{{"driver", driver}, {"node-name", name}, {"read-only", f.readOnly}, {"discard", "unmap"}}
	cache, err := f.cache(disk)
	if err != nil {
		return "", err
	}
	p = append(p, cache...)
	p = append(p, property{"file.driver", file}, property{"file.filename", f.file})
	if f.shared {
		p.set("file.locking", "off")
	}
	switch disk.IO {
	case "", "default":
	case virtv1.IONative:
		if disk.Cache != virtv1.CacheNone {
			return "", errors.New("io: native works with cache: none only; set it")
		}
		p.set("file.aio", "native")
	case virtv1.IOThreads:
		p.set("file.aio", "threads")
	default:
		return "", fmt.Errorf("io %q is not supported; use native or threads", disk.IO)
	}
	return p.option(""), nil
}

// cache is how the node treats the page cache and the guest's flushes.
func (f backing) cache(disk virtv1.Disk) (properties, error) {
	switch {
	case f.seed:
		return nil, nil
	case disk.Cache == "" && f.lasting && f.shared:
		return properties{{"cache.direct", true}}, nil // page caches of two nodes do not agree
	case disk.Cache == "" && f.lasting:
		return properties{{"cache.direct", f.direct}}, nil
	case disk.Cache == "":
		return properties{{"cache.direct", false}, {"cache.no-flush", true}}, nil
	case disk.Cache == virtv1.CacheNone:
		return properties{{"cache.direct", true}}, nil
	case disk.Cache == virtv1.CacheWriteThrough, disk.Cache == virtv1.CacheWriteBack:
		return properties{{"cache.direct", false}}, nil
	}
	return nil, fmt.Errorf("cache %q is not supported; use none, writethrough or writeback", disk.Cache)
}

// writeCache is whether the guest sees a disk with a volatile cache that it must flush. The API's default is none where the file
// can bypass the page cache, writethrough elsewhere.
func (f backing) writeCache(disk virtv1.Disk) any {
	switch {
	case disk.Cache == virtv1.CacheWriteThrough:
		return false
	case disk.Cache == "" && f.lasting && !f.shared:
		return f.direct
	}
	return true
}
