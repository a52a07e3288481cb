package launcher_test

import (
	"os"
	"testing"

	"patchbay/internal/launcher/launchertest"
	"patchbay/internal/launcher/userfault"
)

// TestPostCopy has a QEMU without any privilege fetch what post-copy needs from an open device, and from nowhere else.
func TestPostCopy(t *testing.T) {
	for name, given := range map[string]bool{"with the device": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			pod := launchertest.Start(t, launchertest.Config{})
			s := start("post-copy", "-S", "-incoming", "defer", "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
			var files []*os.File
			if given {
				device, err := os.OpenFile(userfault.Device, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer device.Close()
				s.UserFault, files = new(0), []*os.File{device}
			}
			run(t, pod, s, files...)
			err := monitor(t, pod).SetMigrationCapabilities(t.Context(), map[string]bool{"postcopy-ram": true})
			if given && err != nil {
				t.Errorf("QEMU cannot do post-copy: %v", err)
			}
			// A kernel may be set to give it to everybody.
			if text, _ := os.ReadFile("/proc/sys/vm/unprivileged_userfaultfd"); !given && err == nil && string(text) == "0\n" {
				t.Error("QEMU can do post-copy without the device")
			}
		})
	}
}
