package main

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"patchbay/internal/cluster"
	"patchbay/internal/cluster/layout"
)

func newSuperviseCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "supervise",
		Short: "Keep the processes of a local cluster running (started by up)",
		Long: `Keep the processes of a local cluster running. ` + "`patchbay up`" + ` starts this in the background.

SIGTERM stops all components in order. A supervisor that is killed leaves them running; the next one takes them over.`,
		Example:     `  sudo patchbay supervise --name test    in the foreground, to watch it; the one in the background must not run`,
		Annotations: exits("0 after SIGTERM, when all components have ended", "1 when another supervisor runs, or the cluster does not exist"),
		Args:        cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			place, err := layout.New(name)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return cluster.Supervise(ctx, place, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		},
	}
	addNameFlag(cmd, &name)
	return cmd
}
