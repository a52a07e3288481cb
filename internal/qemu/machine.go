package qemu

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	_ "time/tzdata" // a guest's time zone must not depend on the node's files

	"k8s.io/apimachinery/pkg/api/resource"
	virtv1 "kubevirt.io/api/core/v1"
)

const mebi = 1 << 20

// ramID names the guest's memory; source and target of a migration must agree on it.
const ramID = "pc.ram"

// MachineType is the QEMU machine a VMI runs on: the one that runs already, else the one in the spec, made precise.
func MachineType(vmi *virtv1.VirtualMachineInstance) (string, error) {
	asked := ""
	switch {
	case vmi.Status.Machine != nil && vmi.Status.Machine.Type != "":
		asked = vmi.Status.Machine.Type
	case vmi.Spec.Domain.Machine != nil:
		asked = vmi.Spec.Domain.Machine.Type
	}
	switch {
	case asked == "", asked == "q35", rhelMachine.MatchString(asked):
		return DefaultMachine, nil
	case q35Machine.MatchString(asked):
		return asked, nil
	}
	return "", fmt.Errorf("spec.domain.machine.type: %q is not supported; use q35", asked)
}

var (
	q35Machine = regexp.MustCompile(`^pc-q35-[0-9]+\.[0-9]+(\.[0-9]+)?$`)
	// rhelMachine are the machine types of Red Hat's QEMU, which manifests made there carry. Debian's QEMU has their upstream origin only.
	rhelMachine = regexp.MustCompile(`^pc-q35-rhel[0-9.]+$`)
)

// machine adds everything that is not a device: the board, processors, memory, identity and clock.
func (b *builder) machine() error {
	machine, err := MachineType(b.vmi)
	if err != nil {
		return err
	}
	if b.memory, err = memory(b.domain); err != nil {
		return err
	}
	board := properties{{"memory-backend", ramID}, {"usb", false}, {"vmport", false}, {"dump-guest-core", false}, {"smm", b.smm()}}
	if f := b.domain.Features; f != nil && f.ACPI.Enabled != nil && !*f.ACPI.Enabled {
		board.set("acpi", false)
	}
	if hpetOff(b.domain.Clock) {
		board.set("hpet", false)
	}
	if l := b.domain.Firmware; l != nil && l.Bootloader != nil && l.Bootloader.BIOS != nil && isTrue(l.Bootloader.BIOS.UseSerial) {
		board.set("graphics", false) // makes SeaBIOS talk on the serial port
	}
	if b.efi() != nil {
		board.set("pflash0", "efi-code")
		board.set("pflash1", "efi-vars")
	}
	b.add("-name", properties{{"guest", b.vmi.Namespace + "_" + b.vmi.Name}, {"debug-threads", true}}.option(""))
	b.add("-nodefaults", "-no-user-config", "-display", "none")
	// An escaped guest finds a process that cannot fork, change identity or raise its limits.
	b.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	b.add("-machine", board.option(machine))
	b.add("-accel", b.accel(), "-cpu", b.cpu(), "-smp", b.smp())
	b.add(b.ram()...)
	b.add(b.identity()...)
	rtc, err := b.clock()
	if err != nil {
		return err
	}
	b.add(rtc...)
	b.add("-boot", "strict=on")
	b.add("-action", b.actions())
	return nil
}

// smallGuest is the memory in bytes up to which a guest counts as one that runs little.
const smallGuest = 256 << 20

// accel bounds the translation cache of software emulation, which QEMU would let grow to 1 GiB. Measured with QEMU 7.2 in 2026-11, in
// seconds of CPU time for 16, 32 and 64 MiB: Debian with systemd and cloud-init boots in 32, 18, 15; a kernel with busybox in 2.2, 2.0, 2.0. Less
// than 16 MiB thrashes (5.2 with 8).
func (b *builder) accel() string {
	if b.facts.Accelerator == KVM {
		return "kvm"
	}
	cache := 24 + 8*int(b.vcpus())
	if b.memory <= smallGuest {
		cache = 8 + 8*int(b.vcpus())
	}
	return properties{{"thread", "multi"}, {"tb-size", min(cache, 128)}}.option("tcg")
}

// cpu is the processor model with its features.
func (b *builder) cpu() string {
	kvm := b.facts.Accelerator == KVM
	model, extra := "", properties{}
	if b.domain.CPU != nil {
		model = b.domain.CPU.Model
	}
	switch {
	case model != "" && model != virtv1.CPUModeHostModel && model != virtv1.CPUModeHostPassthrough:
	case kvm:
		model = "host"
	default:
		// Five levels of page tables only lengthen the walks of an emulated MMU.
		model = "max"
		extra.set("la57", false)
	}
	if b.domain.CPU != nil {
		for _, f := range b.domain.CPU.Features {
			extra.set(f.Name, f.Policy != "disable" && f.Policy != "forbid")
		}
	}
	if kvm {
		extra = append(extra, paravirtual(b.domain)...)
	}
	return extra.option(model)
}

// vcpus is the number of virtual CPUs.
func (b *builder) vcpus() uint32 {
	s, c, t := topology(b.domain)
	return s * c * t
}

func (b *builder) smp() string {
	s, c, t := topology(b.domain)
	return properties{{"cpus", s * c * t}, {"sockets", s}, {"cores", c}, {"threads", t}}.option("")
}

// topology is the number of sockets, of cores per socket and of threads per core. Without any, the requested CPUs become sockets.
func topology(domain *virtv1.DomainSpec) (sockets, cores, threads uint32) {
	if c := domain.CPU; c != nil && (c.Sockets != 0 || c.Cores != 0 || c.Threads != 0) {
		return max(c.Sockets, 1), max(c.Cores, 1), max(c.Threads, 1)
	}
	for _, cpu := range []*resource.Quantity{domain.Resources.Requests.Cpu(), domain.Resources.Limits.Cpu()} {
		if cpu.Value() > 0 { // rounded up
			return uint32(min(cpu.Value(), 512)), 1, 1
		}
	}
	return 1, 1, 1
}

// memory is what the guest gets, in bytes.
func memory(domain *virtv1.DomainSpec) (int64, error) {
	var asked resource.Quantity
	switch {
	case domain.Memory != nil && domain.Memory.Guest != nil:
		asked = *domain.Memory.Guest
	case !domain.Resources.Requests.Memory().IsZero():
		asked = *domain.Resources.Requests.Memory()
	default:
		asked = *domain.Resources.Limits.Memory()
	}
	if asked.Value() < mebi {
		return 0, errors.New("the guest has no memory; set spec.domain.memory.guest")
	}
	return (asked.Value() + mebi - 1) / mebi * mebi, nil
}

// oddKiB is what an emulated guest gets beyond what it asked for.
//
// QEMU collects which pages a guest has changed in two ways. The quick one, for memory that is a multiple of 256 KiB, forgets to tell the
// emulated processor that it collects anew, up to QEMU 8.2 (Debian 12 has 7.2): what the processor changes from then on, until it happens to flush
// its address translation, is not sent by a live migration. The guest goes on with a part of its memory out of date; every second one hung
// in its network driver, the more passes over the memory the sooner. The other way, for memory of any other size, does it right.
const oddKiB = 8

// ram is one object of guest memory, so that its kind can differ between the ends of a migration.
func (b *builder) ram() []string {
	huge := b.domain.Memory != nil && b.domain.Memory.Hugepages != nil
	size := fmt.Sprintf("%dM", b.memory/mebi)
	if b.facts.Accelerator != KVM && !huge { // huge pages come in whole ones
		size = fmt.Sprintf("%dK", b.memory>>10+oddKiB)
	}
	kind, p := "memory-backend-ram", properties{{"id", ramID}, {"size", size}}
	if m := b.domain.Memory; huge {
		kind = "memory-backend-memfd"
		p = append(p, property{"hugetlb", true}, property{"hugetlbsize", strings.TrimSuffix(m.Hugepages.PageSize, "i")}, property{"prealloc", true})
	}
	return []string{"-m", properties{{"size", size}}.option(""), "-object", p.option(kind)}
}

// identity is what DMI tells the guest. The vendor is what systemd, cloud-init and inventory tools know these guests by.
func (b *builder) identity() []string {
	id := FirmwareUUID(b.vmi)
	system := properties{{"manufacturer", "KubeVirt"}, {"product", "None"}, {"uuid", id}}
	if fw := b.domain.Firmware; fw != nil && fw.Serial != "" {
		system.set("serial", fw.Serial)
	}
	system.set("family", "KubeVirt")
	args := []string{"-uuid", id, "-smbios", "type=1," + system.option("")}
	if c := b.domain.Chassis; c != nil {
		chassis := properties{}
		for _, p := range (properties{{"manufacturer", c.Manufacturer}, {"version", c.Version}, {"serial", c.Serial}, {"asset", c.Asset}, {"sku", c.Sku}}) {
			if p.value != "" {
				chassis = append(chassis, p)
			}
		}
		args = append(args, "-smbios", "type=3,"+chassis.option(""))
	}
	return args
}

// FirmwareUUID is the machine's identity: the firmware's, else the VMI's own.
func FirmwareUUID(vmi *virtv1.VirtualMachineInstance) string {
	if fw := vmi.Spec.Domain.Firmware; fw != nil && fw.UUID != "" {
		return string(fw.UUID)
	}
	return string(vmi.UID)
}

// clock is the real-time clock's base, and the other timers as far as they can be set.
func (b *builder) clock() ([]string, error) {
	rtc, c := properties{}, b.domain.Clock
	switch {
	case c == nil:
		rtc.set("base", "utc")
	case c.Timezone != nil:
		zone, err := time.LoadLocation(string(*c.Timezone))
		if err != nil {
			return nil, field("spec.domain.clock.timezone", err)
		}
		rtc.set("base", b.facts.Now.In(zone).Format("2006-01-02T15:04:05"))
	case c.UTC != nil && c.UTC.OffsetSeconds != nil && *c.UTC.OffsetSeconds != 0:
		rtc.set("base", b.facts.Now.UTC().Add(time.Duration(*c.UTC.OffsetSeconds)*time.Second).Format("2006-01-02T15:04:05"))
	default:
		rtc.set("base", "utc")
	}
	if c == nil || c.Timer == nil {
		return []string{"-rtc", rtc.option("")}, nil
	}
	if t := c.Timer.RTC; t != nil && t.TickPolicy == virtv1.RTCTickPolicyCatchup {
		rtc.set("driftfix", "slew")
	}
	args := []string{"-rtc", rtc.option("")}
	if t := c.Timer.PIT; t != nil && t.TickPolicy == virtv1.PITTickPolicyDelay && b.facts.Accelerator == KVM {
		args = append(args, "-global", "kvm-pit.lost_tick_policy=delay")
	}
	return args, nil
}

func hpetOff(c *virtv1.Clock) bool {
	return c != nil && c.Timer != nil && c.Timer.HPET != nil && !unlessFalse(c.Timer.HPET.Enabled)
}

// actions says what ends QEMU. A panic makes it fail, so that the pod fails.
func (b *builder) actions() string {
	reboot := "reset"
	if p := b.domain.RebootPolicy; p != nil && *p == virtv1.RebootPolicyTerminate {
		reboot = "shutdown"
	}
	p := properties{{"reboot", reboot}, {"shutdown", "poweroff"}, {"panic", "exit-failure"}}
	if w := b.domain.Devices.Watchdog; w != nil && w.I6300ESB != nil {
		action := string(w.I6300ESB.Action)
		if action == "" {
			action = string(virtv1.WatchdogActionReset)
		}
		p.set("watchdog", action)
	}
	return p.option("")
}
