// Package datapath tests what the rows of internal/topology do to packets: two nodes with Open vSwitch and OVN, joined by a
// fabric, pods in namespaces of their own, rows written by the real Store. No cluster runs.
package datapath

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"patchbay/test/sandbox"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if err := isolate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := startLab(); err != nil {
		fmt.Fprintln(os.Stderr, "start Open vSwitch and OVN:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// labDir and namespaces are directories that exist on every Debian and that only this process sees as its own.
const (
	labDir     = "/mnt"
	namespaces = "/run/netns"
)

func isolate() error {
	if err := sandbox.Enter(); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := unix.Mount("tmpfs", labDir, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", labDir, err)
	}
	return nil
}
