package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"patchbay/internal/vmctl"
)

func newVMPlugCommand(f *vmFlags) *cobra.Command {
	var (
		nic  vmctl.NIC
		wait plugWait
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
		return wait.say(cmd, c, m, nic.Name, false, began)
	})
	flags := cmd.Flags()
	flags.StringVar(&nic.Network, "network", "", "attachment definition of the network")
	flags.StringVar(&nic.Name, "interface", "", "name of the interface (default: the network's)")
	flags.StringVar(&nic.MAC, "mac", "", "MAC address (default: one is chosen)")
	flags.BoolVar(&nic.Down, "link-down", false, "without carrier")
	wait.addFlags(cmd)
	cobra.CheckErr(cmd.MarkFlagRequired("network"))
	return cmd
}

func newVMUnplugCommand(f *vmFlags) *cobra.Command {
	var wait plugWait
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
		return wait.say(cmd, c, m, rest[0], true, began)
	})
	wait.addFlags(cmd)
	return cmd
}

// plugged is what became of a network card.
type plugged struct {
	Namespace string  `json:"namespace"`
	Name      string  `json:"name"`
	Interface string  `json:"interface"`
	State     string  `json:"state"` // plugged, unplugged, asked (it was not waited for), or nextStart
	Seconds   float64 `json:"seconds"`
}

// plugWait is how a command waits for the guest, and says what became of the card.
type plugWait struct {
	timeout time.Duration
	output  outputFormat
}

func (w *plugWait) addFlags(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&w.timeout, "timeout", time.Minute, "how long to wait for the guest; 0: do not wait")
	w.output.addFlag(cmd)
}

func (w *plugWait) say(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, nic string, gone bool, began time.Time) error {
	state, did := "plugged", "plugged into"
	if gone {
		state, did = "unplugged", "unplugged from"
	}
	err := w.await(cmd.Context(), c, m, nic, gone, did)
	took := time.Since(began).Seconds()
	text := fmt.Sprintf("Interface %s was %s VM %s in %.1f s", nic, did, m.Name, took)
	switch {
	case errors.Is(err, vmctl.ErrNotRunning):
		state, text = "nextStart", fmt.Sprintf("VM %s does not run; the change takes effect when it starts", m.Name)
	case err != nil:
		return err
	case w.timeout == 0:
		state, text = "asked", fmt.Sprintf("Interface %s is to be %s VM %s", nic, did, m.Name)
	}
	return w.output.print(cmd.OutOrStdout(), plugged{Namespace: m.Namespace, Name: m.Name, Interface: nic, State: state, Seconds: took}, func(out io.Writer) {
		fmt.Fprintln(out, text)
	})
}

func (w *plugWait) await(ctx context.Context, c *vmctl.Client, m vmctl.Name, nic string, gone bool, did string) error {
	if w.timeout == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, w.timeout, fmt.Errorf(
		"interface %s is not %s %s after %s; `patchbay kubectl describe vmi %s` says why", nic, did, m.Name, w.timeout, m.Name))
	defer cancel()
	return c.AwaitPlugged(ctx, m, nic, gone)
}
