package qemu_test

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/golden"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu"
)

func TestPlan(t *testing.T) {
	for _, c := range cases(t) {
		t.Run(c.name, func(t *testing.T) {
			start, err := qemu.Plan(c.vmi, c.facts)
			if err != nil {
				t.Fatal(err)
			}
			golden.Check(t, "golden", text(t, start))
		})
	}
}

// text is a plan as a reviewer reads it.
func text(t *testing.T, start protocol.Start) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "id %s, %d descriptors, %d s to power down\n", start.ID, start.FDs, start.GraceSeconds)
	if start.KernelPath != "" {
		fmt.Fprintf(&b, "kernel %s, initrd %s\n", start.KernelPath, start.InitrdPath)
	}
	for _, disk := range start.Disks {
		line, err := json.Marshal(disk)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "disk %s\n", line)
	}
	if start.Seed != nil {
		fmt.Fprintf(&b, "seed %s\n", start.Seed.Label)
		for _, path := range sorted(start.Seed.Files) {
			fmt.Fprintf(&b, "  %s: %q\n", path, start.Seed.Files[path])
		}
		for _, path := range sorted(start.Seed.FromDir) {
			fmt.Fprintf(&b, "  %s: from %s\n", path, strings.Join(start.Seed.FromDir[path], " or "))
		}
	}
	for i, arg := range start.Args {
		if i > 0 && strings.HasPrefix(arg, "-") {
			b.WriteByte('\n')
		} else if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(arg)
	}
	b.WriteByte('\n')
	for _, command := range start.Setup {
		fmt.Fprintf(&b, "then %s\n", command)
	}
	return b.String()
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

// addresses are the places of devices in the arguments: id to "bus addr".
func addresses(args []string) map[string]string {
	places := map[string]string{}
	for i, arg := range args {
		if i == 0 || args[i-1] != "-device" || strings.HasPrefix(arg, "pcie-root-port") {
			continue
		}
		var id, bus, addr string
		for part := range strings.SplitSeq(arg, ",") {
			key, value, _ := strings.Cut(part, "=")
			switch key {
			case "id":
				id = value
			case "bus":
				bus = value
			case "addr":
				addr = value
			}
		}
		if addr != "" {
			places[id] = bus + " " + addr
		}
	}
	return places
}

func plan(t *testing.T, vmi *virtv1.VirtualMachineInstance, facts qemu.Facts) protocol.Start {
	t.Helper()
	start, err := qemu.Plan(vmi, facts)
	if err != nil {
		t.Fatal(err)
	}
	return start
}

func TestAddressesDoNotDependOnMemory(t *testing.T) {
	vmi := readVMI(t, "testdata/minimal.yaml")
	large := readVMI(t, "testdata/large-memory.yaml")
	small, big := plan(t, vmi, plainFacts(vmi)), plan(t, large, plainFacts(large))
	if diff := cmp.Diff(addresses(small.Args), addresses(big.Args)); diff != "" {
		t.Errorf("devices moved (-1 GiB +4 GiB):\n%s", diff)
	}
	if s, b := ports(small.Args), ports(big.Args); s != 9 || b != 17 {
		t.Errorf("1 GiB has %d ports and 4 GiB %d, want 9 and 17", s, b)
	}
}

func ports(args []string) (count int) {
	for _, arg := range args {
		if strings.HasPrefix(arg, "pcie-root-port") {
			count++
		}
	}
	return count
}

// TestPluggedNICKeepsItsPlace plugs one NIC after the other into a running guest and then restarts it with all of them.
func TestPluggedNICKeepsItsPlace(t *testing.T) {
	vmi := readVMI(t, "testdata/large-memory.yaml")
	start := plan(t, vmi, plainFacts(vmi))
	fixed := addresses(start.Args)
	running := map[string][]string{}
	for _, arg := range start.Args {
		if strings.HasPrefix(arg, "pcie-root-port") {
			id, _, _ := strings.Cut(strings.TrimPrefix(arg, "pcie-root-port,id="), ",")
			running[id] = nil
		}
	}
	for id, place := range fixed {
		bus, _, _ := strings.Cut(place, " ")
		running[bus] = append(running[bus], id)
	}
	for i := range 5 {
		name := fmt.Sprintf("plugged%d", i)
		vmi.Spec.Domain.Devices.Interfaces = append(vmi.Spec.Domain.Devices.Interfaces, virtv1.Interface{Name: name})
		facts := plainFacts(vmi)
		plugged, err := qemu.PlugNIC(vmi, facts.NICs[len(facts.NICs)-1], running)
		if err != nil {
			t.Fatal(err)
		}
		bus := plugged.Device["bus"].(string)
		running[bus] = append(running[bus], plugged.ID())
		fixed[plugged.ID()] = bus + " " + plugged.Device["addr"].(string)
		if diff := cmp.Diff(fixed, addresses(plan(t, vmi, facts).Args)); diff != "" {
			t.Errorf("after a restart with %d plugged NICs devices moved (-running +restarted):\n%s", i+1, diff)
		}
	}
	if nics, _ := qemu.NICPorts(running); nics["plugged0"] != 2 || nics["plugged3"] <= 8 {
		t.Errorf("NICs sit in ports %v, want the first plugged one in 2 and the fourth behind the fixed devices", nics)
	}
}

func TestPlugNICRefuses(t *testing.T) {
	vmi := readVMI(t, "testdata/minimal.yaml")
	vmi.Spec.Domain.Devices.Interfaces = append(vmi.Spec.Domain.Devices.Interfaces, virtv1.Interface{Name: "old", Model: "e1000e"})
	full := map[string][]string{"port1": {"nic-default"}, "port5": nil}
	for name, c := range map[string]struct {
		nic   string
		ports map[string][]string
		want  string
	}{
		"no port":       {"default", full, "no PCI port is free; restart the VM"},
		"other model":   {"old", map[string][]string{"port2": nil}, "only the virtio model"},
		"not in the VM": {"nobody", map[string][]string{"port2": nil}, "no interface nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := qemu.PlugNIC(vmi, qemu.NIC{Name: c.nic, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}, FDs: []int{0}}, c.ports)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one that says %q", err, c.want)
			}
		})
	}
}

// TestMigrationTargetHasTheSourcesPorts plans the target of a guest whose NICs were plugged in another order than the spec's.
func TestMigrationTargetHasTheSourcesPorts(t *testing.T) {
	vmi := readVMI(t, "testdata/userspace-datapath.yaml")
	facts := plainFacts(vmi)
	facts.Incoming = true
	places, count := qemu.NICPorts(map[string][]string{"port1": {"nic-blue"}, "port2": {}, "port3": {"nic-default"}, "port11": {}})
	facts.Ports = count
	for i := range facts.NICs {
		facts.NICs[i].Port = places[facts.NICs[i].Name]
	}
	start := plan(t, vmi, facts)
	got := addresses(start.Args)
	if got["nic-blue"] != "port1 0x0" || got["nic-default"] != "port3 0x0" || ports(start.Args) != 11 {
		t.Errorf("NICs at %q and %q with %d ports, want them where the source has them, with 11 ports", got["nic-blue"], got["nic-default"], ports(start.Args))
	}
	if !slices.Contains(start.Args, "-incoming") {
		t.Error("the target does not wait for the source")
	}
}

func TestPlanRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*virtv1.VirtualMachineInstance)
		want   string
	}{
		"several at once": {func(v *virtv1.VirtualMachineInstance) {
			v.Spec.Domain.Devices.TPM = &virtv1.TPMDevice{}
			v.Spec.Domain.Devices.Sound = &virtv1.SoundDevice{}
		}, "spec.domain.devices.tpm is not supported: there is no TPM emulator; remove it\nspec.domain.devices.sound"},
		"machine":   {func(v *virtv1.VirtualMachineInstance) { v.Spec.Domain.Machine = &virtv1.Machine{Type: "pc-i440fx-7.2"} }, `"pc-i440fx-7.2" is not supported; use q35`},
		"no memory": {func(v *virtv1.VirtualMachineInstance) { v.Spec.Domain.Memory = nil }, "set spec.domain.memory.guest"},
		"no firmware": {func(v *virtv1.VirtualMachineInstance) {
			v.Spec.Domain.Firmware.Bootloader = &virtv1.Bootloader{EFI: &virtv1.EFI{}}
		}, "holds no UEFI firmware; build it with the package ovmf"},
		"not connected": {func(v *virtv1.VirtualMachineInstance) { v.Spec.Domain.Devices.Interfaces[0].Name = "other" }, "interface other is not connected"},
		"igb":           {func(v *virtv1.VirtualMachineInstance) { v.Spec.Domain.Devices.Interfaces[0].Model = "igb" }, `model "igb" is not in this QEMU; use virtio or e1000e`},
		"no volume":     {func(v *virtv1.VirtualMachineInstance) { v.Spec.Volumes = v.Spec.Volumes[1:] }, "disks[0] (root): there is no volume of this name"},
		"volume kind": {func(v *virtv1.VirtualMachineInstance) {
			v.Spec.Volumes[0].VolumeSource = virtv1.VolumeSource{ConfigMap: &virtv1.ConfigMapVolumeSource{}}
		}, "this kind of volume is not supported"},
		"unbound claim": {func(v *virtv1.VirtualMachineInstance) {
			v.Spec.Volumes[0].VolumeSource = virtv1.VolumeSource{PersistentVolumeClaim: &virtv1.PersistentVolumeClaimVolumeSource{}}
		}, "its claim is not bound yet"},
		"two seeds": {func(v *virtv1.VirtualMachineInstance) {
			v.Spec.Volumes = append(v.Spec.Volumes, virtv1.Volume{Name: "x", VolumeSource: virtv1.VolumeSource{CloudInitConfigDrive: &virtv1.CloudInitConfigDriveSource{UserData: "x"}}})
		}, "one cloud-init volume at most"},
		"lun": {func(v *virtv1.VirtualMachineInstance) {
			v.Spec.Domain.Devices.Disks[0].DiskDevice = virtv1.DiskDevice{LUN: &virtv1.LunTarget{}}
		}, "lun is not supported; use disk"},
		"native with cache": {func(v *virtv1.VirtualMachineInstance) { v.Spec.Domain.Devices.Disks[0].IO = virtv1.IONative }, "io: native works with cache: none only"},
		"bus":               {func(v *virtv1.VirtualMachineInstance) { v.Spec.Domain.Devices.Disks[0].Disk.Bus = "nvme" }, `bus "nvme" is not supported`},
		"pci address form":  {func(v *virtv1.VirtualMachineInstance) { v.Spec.Domain.Devices.Interfaces[0].PciAddress = "81:01.10" }, "write one like 0000:05:00.0"},
		"pci address twice": {func(v *virtv1.VirtualMachineInstance) {
			v.Spec.Domain.Devices.Interfaces[0].PciAddress = "0000:06:00.0"
		}, "two devices want PCI root port 6"},
		"pci address of the board": {func(v *virtv1.VirtualMachineInstance) {
			v.Spec.Domain.Devices.Interfaces[0].PciAddress = "0000:00:1f.0"
		}, "is taken or reserved on bus 0"},
		"arm": {func(v *virtv1.VirtualMachineInstance) { v.Spec.Architecture = "arm64" }, "only amd64 guests run here"},
	} {
		t.Run(name, func(t *testing.T) {
			vmi := readVMI(t, "testdata/minimal.yaml")
			facts := plainFacts(vmi)
			c.change(vmi)
			_, err := qemu.Plan(vmi, facts)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "VM shop/web-01 cannot be started: ") {
				t.Errorf("got error %v, want one that says %q", err, c.want)
			}
		})
	}
}

func TestTooManyDisks(t *testing.T) {
	vmi := readVMI(t, "testdata/minimal.yaml")
	for i := range 30 {
		name := fmt.Sprintf("more%d", i)
		vmi.Spec.Domain.Devices.Disks = append(vmi.Spec.Domain.Devices.Disks, virtv1.Disk{Name: name})
		vmi.Spec.Volumes = append(vmi.Spec.Volumes, virtv1.Volume{Name: name, VolumeSource: virtv1.VolumeSource{EmptyDisk: &virtv1.EmptyDiskSource{}}})
	}
	if _, err := qemu.Plan(vmi, plainFacts(vmi)); err == nil || !strings.Contains(err.Error(), "at most 31; remove disks or interfaces") {
		t.Errorf("got error %v, want one about the number of ports", err)
	}
}

func TestMachineType(t *testing.T) {
	for spec, want := range map[string]string{"": qemu.DefaultMachine, "q35": qemu.DefaultMachine, "pc-q35-6.2": "pc-q35-6.2", "pc-q35-rhel9.6.0": qemu.DefaultMachine} {
		vmi := &virtv1.VirtualMachineInstance{Spec: virtv1.VirtualMachineInstanceSpec{Domain: virtv1.DomainSpec{Machine: &virtv1.Machine{Type: spec}}}}
		if got, err := qemu.MachineType(vmi); err != nil || got != want {
			t.Errorf("machine type of %q is %q, %v; want %q", spec, got, err, want)
		}
	}
	vmi := &virtv1.VirtualMachineInstance{Status: virtv1.VirtualMachineInstanceStatus{Machine: &virtv1.Machine{Type: "pc-q35-7.0"}}}
	if got, err := qemu.MachineType(vmi); err != nil || got != "pc-q35-7.0" {
		t.Errorf("machine type is %q, %v; want the one the guest runs on", got, err)
	}
}
