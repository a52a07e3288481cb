package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"patchbay/internal/vmctl"
)

func newVMPlugCommand(f *vmFlags) *cobra.Command {
	var (
		nic     vmctl.NIC
		timeout time.Duration
	)
	cmd := f.machineCommand(&cobra.Command{
		Use:   "plug MACHINE --network ATTACHMENT",
		Short: "Give a virtual machine one more network card, while it runs",
		Long: `Add a network card to a virtual machine and wait until its guest has it. The network is a NetworkAttachmentDefinition, NAME or NAMESPACE/NAME. A
machine that does not run gets the card when it starts.`,
		Example: `  patchbay vm plug web-01 --network blue-l2
  patchbay vm plug web-01 --network blue-l2 --interface backup --mac 02:00:00:00:00:0a`,
	}, func(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, _ []string) error {
		began := time.Now()
		var err error
		if nic.Name, err = c.Plug(cmd.Context(), m, nic); err != nil {
			return err
		}
		return sayPlugged(cmd, c, m, nic.Name, false, timeout, began)
	})
	flags := cmd.Flags()
	flags.StringVar(&nic.Network, "network", "", "attachment definition of the network")
	flags.StringVar(&nic.Name, "interface", "", "name of the interface (default: the network's)")
	flags.StringVar(&nic.MAC, "mac", "", "MAC address (default: one is chosen)")
	flags.BoolVar(&nic.Down, "link-down", false, "without carrier")
	flags.DurationVar(&timeout, "timeout", time.Minute, "how long to wait for the guest; 0: do not wait")
	cobra.CheckErr(cmd.MarkFlagRequired("network"))
	return cmd
}

func newVMUnplugCommand(f *vmFlags) *cobra.Command {
	var timeout time.Duration
	cmd := f.machineCommand(&cobra.Command{
		Use:   "unplug MACHINE INTERFACE",
		Short: "Take a network card away from a virtual machine, while it runs",
		Long: `Have the guest of a virtual machine let a network card go, and wait until it has. The interface then leaves the machine's pod and its
specification.`,
		Example:           "  patchbay vm unplug web-01 blue-l2",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: f.completeInterface,
	}, func(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, rest []string) error {
		began := time.Now()
		if err := c.Unplug(cmd.Context(), m, rest[0]); err != nil {
			return err
		}
		return sayPlugged(cmd, c, m, rest[0], true, timeout, began)
	})
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait for the guest; 0: do not wait")
	return cmd
}

// sayPlugged waits for the guest and says what became of the card.
func sayPlugged(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, nic string, gone bool, timeout time.Duration, began time.Time) error {
	done := "plugged into"
	if gone {
		done = "unplugged from"
	}
	if timeout == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf(
		"interface %s is not %s %s after %s; `patchbay kubectl describe vmi %s` says why", nic, done, m.Name, timeout, m.Name))
	defer cancel()
	err := c.AwaitPlugged(ctx, m, nic, gone)
	if errors.Is(err, vmctl.ErrNotRunning) {
		fmt.Fprintf(cmd.OutOrStdout(), "VM %s does not run; the change takes effect when it starts\n", m.Name)
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "Interface %s was %s VM %s in %.1f s\n", nic, done, m.Name, time.Since(began).Seconds())
	return nil
}
