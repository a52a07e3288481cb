package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"patchbay/internal/vmctl"
)

// request is what a power command asked for.
type request struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Request   string `json:"request"`
}

// powerCommand is a command that asks for something about one machine and says so.
func powerCommand(f *vmFlags, verb, short, example string, ask func(context.Context, *vmctl.Client, vmctl.Name) error) *cobra.Command {
	var output outputFormat
	cmd := f.machineCommand(&cobra.Command{
		Use:     verb + " MACHINE",
		Short:   short,
		Long:    short + ". It returns when the cluster has taken the request; `patchbay vm list` shows what becomes of it.",
		Example: example,
	}, func(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, _ []string) error {
		if err := ask(cmd.Context(), c, m); err != nil {
			return err
		}
		return output.print(cmd.OutOrStdout(), request{Namespace: m.Namespace, Name: m.Name, Request: verb}, func(w io.Writer) {
			fmt.Fprintf(w, "VM %s was scheduled to %s\n", m.Name, verb)
		})
	})
	output.addFlag(cmd)
	return cmd
}

func newVMStartCommand(f *vmFlags) *cobra.Command {
	var paused bool
	cmd := powerCommand(f, "start", "Start a virtual machine", "  patchbay vm start web-01\n  patchbay vm start web-01 --paused",
		func(ctx context.Context, c *vmctl.Client, m vmctl.Name) error { return c.Start(ctx, m, paused) })
	cmd.Flags().BoolVar(&paused, "paused", false, "hold it before its first instruction")
	return cmd
}

func newVMStopCommand(f *vmFlags) *cobra.Command {
	grace := time.Duration(-1)
	cmd := powerCommand(f, "stop", "Shut a virtual machine down", "  patchbay vm stop web-01\n  patchbay vm stop web-01 --grace 0s",
		func(ctx context.Context, c *vmctl.Client, m vmctl.Name) error {
			if grace < 0 {
				return c.Stop(ctx, m, nil)
			}
			seconds := int64(grace / time.Second)
			return c.Stop(ctx, m, &seconds)
		})
	cmd.Flags().DurationVar(&grace, "grace", grace, "how long the guest may take; less than 0: what the virtual machine says")
	return cmd
}

func newVMRestartCommand(f *vmFlags) *cobra.Command {
	var force bool
	cmd := powerCommand(f, "restart", "Shut a virtual machine down and start it again", "  patchbay vm restart web-01\n  patchbay vm restart web-01 --force",
		func(ctx context.Context, c *vmctl.Client, m vmctl.Name) error { return c.Restart(ctx, m, force) })
	cmd.Flags().BoolVar(&force, "force", false, "do not wait for the guest")
	return cmd
}

func newVMPauseCommand(f *vmFlags) *cobra.Command {
	return powerCommand(f, "pause", "Hold a running virtual machine", "  patchbay vm pause web-01",
		func(ctx context.Context, c *vmctl.Client, m vmctl.Name) error { return c.Pause(ctx, m) })
}

func newVMUnpauseCommand(f *vmFlags) *cobra.Command {
	return powerCommand(f, "unpause", "Let a virtual machine that was paused run on", "  patchbay vm unpause web-01",
		func(ctx context.Context, c *vmctl.Client, m vmctl.Name) error { return c.Unpause(ctx, m) })
}
