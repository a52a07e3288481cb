package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"patchbay/internal/vmctl"
)

func newVMMigrateCommand(f *vmFlags) *cobra.Command {
	var (
		labels map[string]string
		cancel bool
		noWait bool
		output outputFormat
	)
	cmd := f.machineCommand(&cobra.Command{
		Use:   "migrate MACHINE",
		Short: "Move a running virtual machine to another node",
		Long: `Move a running virtual machine to another node and show how it goes: the bytes that are sent and left, their rate, and how long the guest is
expected to stand still when it moves. Interrupting the command does not end the migration; --cancel does.`,
		Example: `  patchbay vm migrate web-01
  patchbay vm migrate web-01 --to kubernetes.io/hostname=node-2
  patchbay vm migrate web-01 --cancel`,
		Annotations: exits("0 when the machine has moved", "1 when it has not"),
	}, func(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, _ []string) error {
		ctx, stop := interruptible(cmd)
		defer stop()
		if cancel {
			return c.CancelMigration(ctx, m)
		}
		migration, err := c.Migrate(ctx, m, labels)
		if err != nil {
			return err
		}
		if noWait {
			return output.print(cmd.OutOrStdout(), vmctl.Progress{Migration: migration}, func(w io.Writer) { fmt.Fprintln(w, migration) })
		}
		line := newProgressLine(os.Stderr)
		begin := time.Now()
		last, err := c.FollowMigration(ctx, m, migration, func(p vmctl.Progress) { line.say(time.Since(begin), describeProgress(p)) })
		line.end()
		if err != nil {
			return err
		}
		if err := output.print(cmd.OutOrStdout(), last, func(w io.Writer) { printMigrated(w, m, last, time.Since(begin)) }); err != nil {
			return err
		}
		if _, well := last.Over(); !well {
			return errors.New("the migration failed; the virtual machine runs on where it was")
		}
		return nil
	})
	flags := cmd.Flags()
	flags.StringToStringVar(&labels, "to", nil, "labels of the node to move to, KEY=VALUE,…")
	flags.BoolVar(&cancel, "cancel", false, "end the migration that is under way")
	flags.BoolVar(&noWait, "no-wait", false, "return when it is asked for, and print its name")
	output.addFlag(cmd)
	return cmd
}

func describeProgress(p vmctl.Progress) string {
	text := p.Phase
	if p.Target != "" {
		text += " " + p.Source + " -> " + p.Target
	}
	if p.TotalBytes > 0 {
		text += fmt.Sprintf(": %s sent, %s of %s left, %.0f Mbit/s, expected downtime %d ms",
			bytesText(p.TransferredBytes), bytesText(p.RemainingBytes), bytesText(p.TotalBytes), float64(p.BitsPerSecond)/1e6, p.DowntimeMilliseconds)
	}
	return text
}

func bytesText(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func printMigrated(w io.Writer, name vmctl.Name, p vmctl.Progress, took time.Duration) {
	if _, well := p.Over(); !well {
		fmt.Fprintf(w, "VM %s was not migrated (%s): %s\n", name.Name, p.Migration, p.Failure)
		return
	}
	fmt.Fprintf(w, "VM %s moved from %s to %s in %.1f s (%s)\n", name.Name, p.Source, p.Target, took.Seconds(), p.Migration)
}
