package admission

import (
	"regexp"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"
	virtv1 "kubevirt.io/api/core/v1"
)

// maxSerial is the longest serial number of a disk, in bytes.
const maxSerial = 256

var (
	serial    = regexp.MustCompile(`^[A-Za-z0-9_.+-]+$`)
	diskBuses = []virtv1.DiskBus{virtv1.DiskBusVirtio, virtv1.DiskBusSCSI, virtv1.DiskBusSATA, virtv1.DiskBusUSB}
)

func (c *checker) disk(i int) *field.Path {
	return c.root.Child("domain", "devices", "disks").Index(i)
}

// disks are the rules about the disks that the guest sees; each needs a volume of the same name.
func (c *checker) disks() {
	first := map[string]int{}
	for i, d := range c.spec.Domain.Devices.Disks {
		at := c.disk(i)
		if other, ok := first[d.Name]; ok {
			c.invalid(at.Child("name"), "%s and %s must not have the same Name.", at, c.disk(other))
		} else {
			first[d.Name] = i
		}
		c.diskTarget(at, d)
		c.diskSerial(at.Child("serial"), d.Serial)
		c.diskVolume(at, d)
	}
}

func (c *checker) diskTarget(at *field.Path, d virtv1.Disk) {
	if count(d.Disk != nil, d.LUN != nil, d.CDRom != nil) > 1 {
		c.invalid(at, "%s can only have a single target type defined", at)
	}
	if d.Disk != nil {
		c.bus(at.Child("disk", "bus"), d.Disk.Bus)
	}
	if d.LUN != nil {
		c.bus(at.Child("lun", "bus"), d.LUN.Bus)
	}
	if d.CDRom != nil {
		if d.CDRom.Bus == virtv1.DiskBusVirtio {
			c.invalid(at.Child("cdrom", "bus"), "Bus type %s is invalid for CD-ROM device", d.CDRom.Bus)
			return
		}
		c.bus(at.Child("cdrom", "bus"), d.CDRom.Bus)
	}
}

func (c *checker) bus(at *field.Path, bus virtv1.DiskBus) {
	if bus != "" && !slices.Contains(diskBuses, bus) {
		c.invalid(at, "%s is set with an unrecognized bus %s, must be one of: %v", at, bus, diskBuses)
	}
}

func (c *checker) diskSerial(at *field.Path, s string) {
	if s != "" && !serial.MatchString(s) {
		c.invalid(at, "%s must be made up of the following characters [A-Za-z0-9_.+-], if specified", at)
	}
	if len(s) > maxSerial {
		c.invalid(at, "%s must be less than or equal to %d in length, if specified", at, maxSerial)
	}
}

func (c *checker) diskVolume(at *field.Path, d virtv1.Disk) {
	i := slices.IndexFunc(c.spec.Volumes, func(v virtv1.Volume) bool { return v.Name == d.Name })
	if i < 0 {
		c.invalid(at.Child("name"), "%s '%s' not found.", at.Child("name"), d.Name)
		return
	}
	if v := c.spec.Volumes[i]; d.LUN != nil && v.PersistentVolumeClaim == nil && v.DataVolume == nil {
		c.invalid(at.Child("lun"), "%s can only be mapped to a DataVolume or PersistentVolumeClaim volume.", at.Child("lun"))
	}
}
