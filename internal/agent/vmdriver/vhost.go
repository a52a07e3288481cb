package vmdriver

import (
	"os"

	virtv1 "kubevirt.io/api/core/v1"
)

// maxFiles is how many descriptors one message on a Unix socket carries (SCM_MAX_FD of Linux).
const maxFiles = 253

// OpenVhostNet opens the kernel's backend of virtio NICs, which moves packets between a tap and the guest without QEMU. The agent
// opens it and passes the descriptor on, as with taps, so that the pod needs no device.
func OpenVhostNet() (*os.File, error) { return os.OpenFile("/dev/vhost-net", os.O_RDWR, 0) }

// openVhost gives the kernel's backend to the NICs that can have it: virtio ones whose tap ends in the kernel, where segments and
// checksums need not be complete. It is a matter of speed only; a NIC goes without when it cannot be opened.
func (all cards) openVhost(open func() (*os.File, error)) {
	if open == nil {
		return
	}
	total := 0
	for _, c := range all {
		total += len(c.Files)
	}
	for _, c := range all {
		if total += len(c.Files); !c.canVhost() || total > maxFiles {
			total -= len(c.Files)
			continue
		}
		for range c.Files {
			file, err := open()
			if err != nil {
				c.closeVhost()
				return
			}
			c.Vhost = append(c.Vhost, file)
		}
	}
}

func (c card) canVhost() bool {
	virtio := c.Interface.Model == "" || c.Interface.Model == virtv1.VirtIO
	return virtio && c.Offloads && len(c.Files) > 0
}

func (w *Wired) closeVhost() {
	for _, f := range w.Vhost {
		f.Close()
	}
	w.Vhost = nil
}
