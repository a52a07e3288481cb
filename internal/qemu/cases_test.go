package qemu_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"patchbay/internal/qemu"
)

// planCase is one virtual machine instance of testdata with the facts it is planned with.
type planCase struct {
	name  string
	vmi   *virtv1.VirtualMachineInstance
	facts qemu.Facts
}

// cases reads testdata. Facts are those of a node with emulation and kernel datapath, with what the case changes.
func cases(t *testing.T) []planCase {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 15 {
		t.Fatalf("found %d VMIs in testdata, error %v", len(files), err)
	}
	var list []planCase
	for _, file := range files {
		c := planCase{name: strings.TrimSuffix(filepath.Base(file), ".yaml"), vmi: readVMI(t, file)}
		c.facts = plainFacts(c.vmi)
		if change := changes[c.name]; change != nil {
			change(&c.facts)
		}
		list = append(list, c)
	}
	return list
}

func readVMI(t *testing.T, file string) *virtv1.VirtualMachineInstance {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	vmi := &virtv1.VirtualMachineInstance{}
	if err := yaml.UnmarshalStrict(text, vmi); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return vmi
}

// plainFacts wires every interface to one tap of its own.
func plainFacts(vmi *virtv1.VirtualMachineInstance) qemu.Facts {
	facts := qemu.Facts{Accelerator: qemu.TCG, Now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	for i, iface := range vmi.Spec.Domain.Devices.Interfaces {
		if iface.State == virtv1.InterfaceStateAbsent {
			continue
		}
		facts.NICs = append(facts.NICs, qemu.NIC{
			Name: iface.Name, MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(i + 1)}, MTU: 1400, FDs: []int{i}, Offloads: true,
			LinkDown: iface.State == virtv1.InterfaceStateLinkDown,
		})
	}
	return facts
}

// changes are the facts in which a case differs.
var changes = map[string]func(*qemu.Facts){
	"userspace-datapath": func(f *qemu.Facts) { f.NICs[0].Offloads, f.NICs[1].Offloads = false, false },
	"nic-models":         func(f *qemu.Facts) { f.NICs[1].Offloads = false },
	"disks": func(f *qemu.Facts) {
		f.Claims = map[string]qemu.Claim{
			"claim": {SizeBytes: 32 << 20}, "data": {SizeBytes: 32 << 20}, "raw": {Block: true}, "snapshot": {SizeBytes: 32 << 20},
		}
	},
	"efi": func(f *qemu.Facts) {
		f.EFI = &qemu.EFI{
			Code: "/usr/share/OVMF/OVMF_CODE_4M.fd", Vars: "/usr/share/OVMF/OVMF_VARS_4M.fd",
			SecureCode: "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", SecureVars: "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
		}
	},
	"config-drive": func(f *qemu.Facts) { f.PublicKeys = []string{"ssh-ed25519 AAAA one\n", "ssh-ed25519 BBBB two"} },
	"kvm-multiqueue": func(f *qemu.Facts) {
		f.Accelerator = qemu.KVM
		f.NICs[0].FDs, f.NICs[0].VhostFDs = []int{0, 1, 2, 3}, []int{4, 5, 6, 7}
	},
	"windows": func(f *qemu.Facts) {
		f.Accelerator = qemu.KVM
		f.Claims = map[string]qemu.Claim{"c": {SizeBytes: 1 << 30}}
	},
	"migration-target": func(f *qemu.Facts) {
		f.Incoming, f.Ports = true, 10
		f.NICs[1].Port = 3
	},
	"passt": func(f *qemu.Facts) { f.NICs[0].FDs, f.NICs[0].Socket = nil, "/run/patchbay/passt.sock" },
}
