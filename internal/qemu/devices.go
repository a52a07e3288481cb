package qemu

import (
	"fmt"
	"path"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/protocol"
)

// AgentChardev is the character device behind the guest agent's channel, ConsoleChardev the one behind the serial console.
const (
	AgentChardev   = "qga"
	ConsoleChardev = "serial0"
	channelsID     = "channels"
)

// controllers adds what other devices plug into.
func (b *builder) controllers() error {
	scsi, usb := false, false
	for _, disk := range b.domain.Devices.Disks {
		scsi = scsi || busOf(disk) == virtv1.DiskBusSCSI
		usb = usb || busOf(disk) == virtv1.DiskBusUSB
	}
	for _, input := range b.inputs() {
		usb = usb || input.Bus != virtv1.InputBusVirtio
	}
	if scsi {
		if err := b.port(scsiPort, "virtio-scsi-pci", scsiID); err != nil {
			return err
		}
	}
	if usb {
		b.device(append(properties{{"id", usbID}}, place{slot: ownSlotUSB}.properties()...), "qemu-xhci")
	}
	// It has 64 queues, which carry next to nothing. As event descriptors they would make QEMU's main loop poll 64 more whenever it wakes up:
	// 50 µs of a round trip, as long as no vhost takes packets past that loop.
	return b.port(serialPort, "virtio-serial-pci", channelsID, property{"ioeventfd", false})
}

// port adds a virtio device to a port of its own.
func (b *builder) port(port int, driver, id string, more ...property) error {
	at, err := b.layout.take(port, false)
	if err != nil {
		return err
	}
	p := append(properties{{"id", id}}, virtioVersion(b.vmi, false)...)
	b.device(append(append(p, more...), at.properties()...), driver)
	return nil
}

// extras adds the devices that help the host and the guest get on.
func (b *builder) extras() error {
	d := b.domain.Devices
	if unlessFalse(d.AutoattachMemBalloon) {
		// Free page reporting gives back what the guest does not use, without anybody asking for it.
		if err := b.port(b.layout.free(diskPort), "virtio-balloon-pci", "balloon0", property{"free-page-reporting", true}); err != nil {
			return err
		}
	}
	if d.Rng != nil {
		b.add("-object", "rng-random,id=entropy,filename=/dev/urandom")
		if err := b.port(b.layout.free(diskPort), "virtio-rng-pci", "rng0", property{"rng", "entropy"}); err != nil {
			return err
		}
	}
	if d.Watchdog != nil {
		b.device(append(properties{{"id", "watchdog0"}}, place{slot: ownSlotDog}.properties()...), "i6300esb")
	}
	b.panicDevices()
	return b.inputDevices()
}

// panicDevices let the guest say that it crashed.
func (b *builder) panicDevices() {
	for i, device := range b.domain.Devices.PanicDevices {
		p := properties{{"id", fmt.Sprintf("panic%d", i)}}
		if device.Model != nil && *device.Model == virtv1.Pvpanic {
			b.device(append(p, place{slot: ownSlotPanic}.properties()...), "pvpanic-pci")
		} else {
			b.device(p, "pvpanic")
		}
	}
}

// inputs are the input devices asked for; a tablet makes VNC's pointer follow the user's.
func (b *builder) inputs() []virtv1.Input {
	list := b.domain.Devices.Inputs
	if isTrue(b.domain.Devices.AutoattachInputDevice) && len(list) == 0 {
		list = []virtv1.Input{{Type: virtv1.InputTypeTablet, Bus: virtv1.InputBusUSB, Name: "default-0"}}
	}
	return list
}

func (b *builder) inputDevices() error {
	for i, input := range b.inputs() {
		kind := string(input.Type)
		if kind == "" {
			kind = string(virtv1.InputTypeTablet)
		}
		if kind != string(virtv1.InputTypeTablet) && kind != string(virtv1.InputTypeKeyboard) {
			return fmt.Errorf("spec.domain.devices.inputs[%d].type: %q is not supported; use tablet", i, kind)
		}
		p := properties{{"id", fmt.Sprintf("input%d", i)}}
		switch input.Bus {
		case "", virtv1.InputBusUSB:
			p.set("bus", usbID+".0")
			b.device(p, either(kind == "keyboard", "usb-kbd", "usb-tablet"))
		case virtv1.InputBusVirtio:
			if i >= portsPerSlot {
				return fmt.Errorf("spec.domain.devices.inputs[%d]: more than %d virtio inputs are not supported; remove some", i, portsPerSlot)
			}
			if i == 0 {
				p.set("multifunction", true)
			}
			b.device(append(p, place{slot: ownSlotInput, fn: i}.properties()...), "virtio-"+kind+"-pci")
		default:
			return fmt.Errorf("spec.domain.devices.inputs[%d].bus: %q is not supported; use usb or virtio", i, input.Bus)
		}
	}
	return nil
}

// consoles adds what people and the agent look at the guest through.
func (b *builder) consoles() error {
	run := func(name string) string { return path.Join(protocol.RunDir, name) }
	listen := func(id, name string) properties {
		return properties{{"id", id}, {"path", run(name)}, {"server", true}, {"wait", false}}
	}
	b.add("-chardev", listen("qmp", protocol.QMPName).option("socket"), "-mon", "chardev=qmp,mode=control")
	b.add("-chardev", listen(AgentChardev, protocol.AgentName).option("socket"))
	b.device(properties{{"id", "agent0"}, {"bus", channelsID + ".0"}, {"nr", 1}, {"chardev", AgentChardev}, {"name", "org.qemu.guest_agent.0"}}, "virtserialport")
	if unlessFalse(b.domain.Devices.AutoattachSerialConsole) {
		console := append(listen(ConsoleChardev, protocol.ConsoleName), property{"logfile", run(protocol.ConsolePipe)}, property{"logappend", true})
		b.add("-chardev", console.option("socket"))
		b.device(properties{{"id", "console0"}, {"chardev", ConsoleChardev}}, "isa-serial")
	}
	return b.video()
}

// videoModels are the display devices by the API's names.
var videoModels = map[string]string{
	"": "VGA", "vga": "VGA", "virtio": "virtio-vga", "bochs": "bochs-display", "cirrus": "cirrus-vga",
}

func (b *builder) video() error {
	d := b.domain.Devices
	if !unlessFalse(d.AutoattachGraphicsDevice) {
		return nil
	}
	kind := ""
	if d.Video != nil {
		kind = d.Video.Type
	}
	model, known := videoModels[kind]
	if !known {
		return fmt.Errorf("spec.domain.devices.video.type: %q is not supported; use vga, virtio, bochs or cirrus", kind)
	}
	b.device(append(properties{{"id", "video0"}}, place{slot: 1}.properties()...), model)
	b.add("-vnc", "unix:"+path.Join(protocol.RunDir, protocol.VNCName))
	return nil
}
