package qemu

import (
	"encoding/json"
	"fmt"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/protocol"
)

// Plan is how to start a virtual machine instance. An error says which field is not supported and what to do.
func Plan(vmi *virtv1.VirtualMachineInstance, facts Facts) (protocol.Start, error) {
	b := &builder{vmi: vmi, domain: &vmi.Spec.Domain, facts: facts, placed: map[string]bool{}}
	if err := b.build(); err != nil {
		return protocol.Start{}, fmt.Errorf("VM %s/%s cannot be started: %w", vmi.Namespace, vmi.Name, err)
	}
	return b.start, nil
}

// builder collects a Start.
type builder struct {
	vmi    *virtv1.VirtualMachineInstance
	domain *virtv1.DomainSpec
	facts  Facts

	start  protocol.Start
	layout *layout
	// memory is the guest's, in bytes.
	memory int64
	// devices are the arguments of everything in a place; they follow the ports.
	devices []string
	// sata and scsi count the disks on those buses.
	sata, scsi int
	// placed are the interfaces that have a device.
	placed map[string]bool
	// tagged are what cloud-init's config drive tells the guest about its devices.
	tagged []deviceTag
}

func (b *builder) build() error {
	if err := unsupported(b.vmi); err != nil {
		return err
	}
	_, flat := b.vmi.Annotations[virtv1.PlacePCIDevicesOnRootComplex]
	b.layout = newLayout(flat)
	b.start = protocol.Start{ID: string(b.vmi.UID), FDs: b.descriptors(), GraceSeconds: grace(b.vmi)}
	// Order matters to the layout alone; the arguments are put together at the end.
	for _, step := range []func() error{b.machine, b.firmware, b.nics, b.controllers, b.disks, b.extras, b.lateNICs, b.seed, b.consoles} {
		if err := step(); err != nil {
			return err
		}
	}
	if !flat {
		b.add(b.layout.rootPorts(b.portCount())...)
	}
	b.add(b.devices...)
	return b.launch()
}

func (b *builder) add(args ...string) { b.start.Args = append(b.start.Args, args...) }
func (b *builder) device(p properties, d string) {
	b.devices = append(b.devices, "-device", p.option(d))
}

// portCount is the number of root ports: the source's on a migration target, since a guest cannot lose or win any while it runs.
func (b *builder) portCount() int {
	if b.facts.Ports != 0 {
		return b.facts.Ports
	}
	return b.layout.last(b.memory)
}

// launch says how the guest's CPUs come to run.
func (b *builder) launch() error {
	paused := b.vmi.Spec.StartStrategy != nil && *b.vmi.Spec.StartStrategy == virtv1.StartStrategyPaused
	if b.facts.Incoming {
		b.add("-incoming", "defer")
	}
	for _, nic := range b.facts.NICs {
		if nic.LinkDown {
			b.setup("set_link", map[string]any{"name": NICDevice(nic.Name), "up": false})
		}
	}
	// A guest that arrives runs when its source has given it away, not when its last byte is here.
	if paused || len(b.start.Setup) > 0 || b.facts.Incoming {
		b.add("-S")
	}
	if len(b.start.Setup) > 0 && !paused && !b.facts.Incoming {
		b.setup("cont", nil)
	}
	return nil
}

func (b *builder) setup(command string, args map[string]any) {
	line := map[string]any{"execute": command}
	if args != nil {
		line["arguments"] = args
	}
	text, _ := json.Marshal(line) // strings and booleans: cannot fail
	b.start.Setup = append(b.start.Setup, text)
}

// descriptors is how many file descriptors the NICs need.
func (b *builder) descriptors() int {
	count := 0
	for _, nic := range b.facts.NICs {
		count += len(nic.FDs) + len(nic.VhostFDs)
	}
	return count
}

// grace is how long the guest may take to power down, in seconds. The API's default is 30.
func grace(vmi *virtv1.VirtualMachineInstance) int64 {
	if g := vmi.Spec.TerminationGracePeriodSeconds; g != nil {
		return max(0, *g)
	}
	return 30
}

func isTrue(b *bool) bool { return b != nil && *b }

// unlessFalse is the value of a switch that is on when the user says nothing.
func unlessFalse(b *bool) bool { return b == nil || *b }

// field puts the path of a field before what is wrong with it.
func field(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", path, err)
}
