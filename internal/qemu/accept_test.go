package qemu_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/launchertest"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu"
	"patchbay/internal/qemu/qmp"
)

func TestMain(m *testing.M) { os.Exit(launchertest.Main(m)) }

// onAnyHost changes a case so that it runs where there is neither hardware virtualisation nor reserved huge pages.
func onAnyHost(c *planCase) {
	c.facts.Accelerator = qemu.TCG
	if memory := c.vmi.Spec.Domain.Memory; memory != nil {
		memory.Hugepages = nil
	}
	for i := range c.facts.NICs {
		c.facts.NICs[i].VhostFDs = nil
	}
	if c.facts.EFI != nil {
		// Any image of the right size starts as flash; what firmware does is not at stake here.
		c.facts.EFI = &qemu.EFI{SecureCode: "/volumes/efi/code", SecureVars: "/volumes/efi/vars"}
	}
}

// TestQEMUAcceptsEveryPlan starts each case of testdata in a pod's surroundings and asks QEMU where the devices are.
func TestQEMUAcceptsEveryPlan(t *testing.T) {
	for _, c := range cases(t) {
		t.Run(c.name, func(t *testing.T) {
			onAnyHost(&c)
			start := plan(t, c.vmi, c.facts)
			pod := launchertest.Start(t, launchertest.Config{})
			fillVolumes(t, pod, c.vmi, start)
			if _, err := pod.Run.Start(t.Context(), start, taps(t, c.facts)); err != nil {
				t.Fatal(err)
			}
			m := machine(t, pod)
			checkPlaces(t, m, start)
			status, err := m.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := "running"
			switch {
			case c.facts.Incoming:
				want = "inmigrate"
			case c.vmi.Spec.StartStrategy != nil:
				want = "prelaunch"
			}
			if status.State != want {
				t.Errorf("the machine is %s, want %s", status.State, want)
			}
		})
	}
}

func machine(t *testing.T, pod *launchertest.Pod) qmp.Machine {
	t.Helper()
	conn, err := pod.Run.Dial(t.Context(), protocol.QMPName)
	if err != nil {
		t.Fatal(err)
	}
	client, err := qmp.New(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return qmp.Machine{Monitor: client}
}

// taps opens what the facts promise: a tap per NIC, with its queues.
func taps(t *testing.T, facts qemu.Facts) (files []*os.File) {
	t.Helper()
	for _, nic := range facts.NICs {
		if len(nic.FDs) > 0 {
			files = append(files, launchertest.Taps(t, len(nic.FDs))...)
		}
	}
	return files
}

// checkPlaces compares the plan's root ports with what QEMU found.
func checkPlaces(t *testing.T, m qmp.Machine, start protocol.Start) {
	t.Helper()
	want := map[string][]string{}
	for i, arg := range start.Args {
		if i > 0 && start.Args[i-1] == "-device" && strings.HasPrefix(arg, "pcie-root-port,") {
			id, _, _ := strings.Cut(strings.TrimPrefix(arg, "pcie-root-port,id="), ",")
			want[id] = []string{}
		}
	}
	for id, place := range addresses(start.Args) {
		if bus, _, _ := strings.Cut(place, " "); want[bus] != nil {
			want[bus] = append(want[bus], id)
		}
	}
	got, err := m.Ports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("devices are elsewhere (-planned +found):\n%s", diff)
	}
}

// fillVolumes puts into the pod what Kubernetes would mount there.
func fillVolumes(t *testing.T, pod *launchertest.Pod, vmi *virtv1.VirtualMachineInstance, start protocol.Start) {
	t.Helper()
	inPod := func(path string) string {
		return filepath.Join(pod.Volumes, strings.TrimPrefix(path, protocol.VolumesDir))
	}
	for _, disk := range start.Disks {
		switch {
		case disk.Kind == protocol.Overlay && disk.SourceFormat == "" && filepath.Base(disk.Source) == "disk":
			image(t, inPod(filepath.Join(disk.Source, "image.qcow2")), "qcow2")
		case disk.Kind == protocol.Overlay && disk.SourceFormat == "":
			image(t, inPod(disk.Source), "qcow2")
		case disk.Kind == protocol.Overlay:
			image(t, inPod(disk.Source), "raw")
		case disk.Kind == protocol.File:
			directory(t, filepath.Dir(inPod(disk.Source)))
		case disk.Kind == protocol.Block:
			loopDevice(t, inPod(disk.Source))
		}
	}
	for path, candidates := range seedFiles(start) {
		write(t, inPod(candidates[0]), "from the secret for "+path)
	}
	if start.KernelPath != "" {
		write(t, inPod(filepath.Join(protocol.VolumesDir, protocol.KernelBootVolume, start.KernelPath)), bootSector())
		write(t, inPod(filepath.Join(protocol.VolumesDir, protocol.KernelBootVolume, start.InitrdPath)), "initrd")
	}
	if fw := vmi.Spec.Domain.Firmware; fw != nil && fw.Bootloader != nil && fw.Bootloader.EFI != nil {
		image(t, inPod("/volumes/efi/code"), "raw")
		image(t, inPod("/volumes/efi/vars"), "raw")
	}
}

func seedFiles(start protocol.Start) map[string][]string {
	if start.Seed == nil {
		return nil
	}
	return start.Seed.FromDir
}

// bootSector is the least that QEMU takes for a Linux kernel: boot protocol 2.00.
func bootSector() string {
	sector := make([]byte, 8<<10)
	copy(sector[0x1fe:], "\x55\xaa")
	copy(sector[0x202:], "HdrS\x00\x02")
	return string(sector)
}

func directory(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 107, 107); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	directory(t, filepath.Dir(path))
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func image(t *testing.T, path, format string) {
	t.Helper()
	directory(t, filepath.Dir(path))
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", format, path, "4M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// loopDevice makes a block device node in the pod over a file.
func loopDevice(t *testing.T, path string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "backing")
	image(t, file, "raw")
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", device).Run() })
	numbers, err := exec.Command("stat", "--format", "%Hr %Lr", device).Output()
	if err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscan(string(numbers), &major, &minor); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mknod", path, "b", fmt.Sprint(major), fmt.Sprint(minor)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Chown(path, 107, 107); err != nil {
		t.Fatal(err)
	}
}
