package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"patchbay/internal/vmctl"
)

// powerCommand is a command that asks for something about one machine and says so.
func powerCommand(f *vmFlags, use, short, example, said string, ask func(context.Context, *vmctl.Client, vmctl.Name) error) *cobra.Command {
	return f.machineCommand(&cobra.Command{
		Use:     use + " MACHINE",
		Short:   short,
		Long:    short + ". It returns when the cluster has taken the request; `patchbay vm list` shows what becomes of it.",
		Example: example,
	}, func(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, _ []string) error {
		if err := ask(cmd.Context(), c, m); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "VM %s was scheduled to %s\n", m.Name, said)
		return nil
	})
}

func newVMStartCommand(f *vmFlags) *cobra.Command {
	var paused bool
	cmd := powerCommand(f, "start", "Start a virtual machine", "  patchbay vm start web-01\n  patchbay vm start web-01 --paused", "start",
		func(ctx context.Context, c *vmctl.Client, m vmctl.Name) error { return c.Start(ctx, m, paused) })
	cmd.Flags().BoolVar(&paused, "paused", false, "hold it before its first instruction")
	return cmd
}

func newVMStopCommand(f *vmFlags) *cobra.Command {
	grace := time.Duration(-1)
	cmd := powerCommand(f, "stop", "Shut a virtual machine down", "  patchbay vm stop web-01\n  patchbay vm stop web-01 --grace 0s", "stop",
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
	cmd := powerCommand(f, "restart", "Shut a virtual machine down and start it again", "  patchbay vm restart web-01\n  patchbay vm restart web-01 --force", "restart",
		func(ctx context.Context, c *vmctl.Client, m vmctl.Name) error { return c.Restart(ctx, m, force) })
	cmd.Flags().BoolVar(&force, "force", false, "do not wait for the guest")
	return cmd
}
