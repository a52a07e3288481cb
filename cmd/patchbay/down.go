package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"patchbay/internal/cluster"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/teardown"
)

func newDownCommand() *cobra.Command {
	var (
		name   string
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove a local cluster with everything it made on this host",
		Long: `End all processes of a local cluster and remove its network namespaces, mounts, control groups and state directory, the disks of
claims included. What --expose and --merge-kubeconfig changed is taken back.

A cluster that does not exist is no error. Interrupted or failed, it may be repeated: it removes what is left.`,
		Example: `  sudo patchbay down
  sudo patchbay down --name test --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			place, err := layout.New(name)
			if err != nil {
				return err
			}
			report, err := cluster.Down(cmd.Context(), place)
			if err != nil {
				return err
			}
			return output.print(cmd.OutOrStdout(), report, func(w io.Writer) { printDown(w, report) })
		},
	}
	addNameFlag(cmd, &name)
	output.addFlag(cmd)
	return cmd
}

func printDown(w io.Writer, r teardown.Report) {
	if !r.Existed {
		fmt.Fprintf(w, "There is no cluster %q; nothing to remove.\n", r.Name)
		return
	}
	fmt.Fprintf(w, "Cluster %q is removed: %d processes, %d network namespaces, %s\n", r.Name, r.Processes, len(r.Namespaces), r.Directory)
}
