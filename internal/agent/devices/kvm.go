package devices

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Where the kernel shows what the node can do.
const (
	kvmPath  = "/dev/kvm"
	procInfo = "/proc/cpuinfo"
)

// CheckKVM says why guest code cannot be executed by this node's processor; nil when it can. /dev/kvm may open on a machine whose
// processor cannot run guests, and guests then hang; so the processor is asked, too.
func CheckKVM() error { return checkKVM(kvmPath, procInfo) }

func checkKVM(device, cpuinfo string) error {
	file, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w; is virtualization switched on in the firmware, and the module kvm_intel or kvm_amd loaded?", err)
	}
	file.Close()
	info, err := os.ReadFile(cpuinfo)
	if err != nil {
		return fmt.Errorf("read the processor's features: %w", err)
	}
	if !hasVirtualization(string(info)) {
		return errors.New("the processor shows neither vmx nor svm; in a virtual machine, switch nested virtualization on in its host")
	}
	return nil
}

func hasVirtualization(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		if name, flags, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "flags" {
			words := strings.Fields(flags)
			return slices.Contains(words, "vmx") || slices.Contains(words, "svm")
		}
	}
	return false
}
