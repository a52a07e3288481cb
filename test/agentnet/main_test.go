// Package agentnet tests the node agent's network on a real Open vSwitch and OVN: one node in a network namespace of its own,
// pods in further ones, and an outside host. No cluster runs; logical ports are made with ovn-nbctl.
//
// The tests run in a network namespace of their own, which is the node's.
package agentnet

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"patchbay/test/sandbox"
)

// victimVariable marks a process that carries out one ADD and dies.
const victimVariable = "PATCHBAY_AGENTNET_VICTIM"

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(victimVariable) != "" {
		os.Exit(runVictim())
	}
	os.Exit(runTests(m))
}

// runTests is the first process of the PID namespace.
func runTests(m *testing.M) int {
	if err := sandbox.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("/tmp", "pbag-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if lab, err = startLab(dir); err != nil {
		fmt.Fprintln(os.Stderr, "start Open vSwitch and OVN:", err)
		return 1
	}
	return m.Run()
}
