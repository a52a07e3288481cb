package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"patchbay/internal/cluster"
	"patchbay/internal/cluster/layout"
)

func newStatusCommand() *cobra.Command {
	var (
		name   string
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the components and nodes of a local cluster; fails when one is unhealthy",
		Long: `Ask every process of a local cluster for its health, and the API server for the nodes, and print them with process ids, restarts and
logs. It asks now and needs no running supervisor.`,
		Example: `  patchbay status
  patchbay status --name test --output json | jq '.components[] | select(.healthy | not)'`,
		Annotations: exits("0 when everything is healthy", "1 when something is not, or the cluster does not exist"),
		Args:        cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			place, err := layout.New(name)
			if err != nil {
				return err
			}
			status, err := cluster.ReadStatus(cmd.Context(), place)
			if err != nil {
				return err
			}
			if err := output.print(cmd.OutOrStdout(), status, func(w io.Writer) { printStatus(w, status) }); err != nil {
				return err
			}
			if !status.Healthy {
				return errors.New("the cluster is not healthy; `patchbay up" + nameFlag(name) + "` starts what is missing")
			}
			return nil
		},
	}
	addNameFlag(cmd, &name)
	output.addFlag(cmd)
	return cmd
}

func printStatus(w io.Writer, s cluster.Status) {
	fmt.Fprintf(w, "Cluster    %s\nAPI        %s\nKubeconfig %s\nLogs       %s\nDatapath   %s, fabric MTU %d\n\n",
		s.Name, s.API, s.Kubeconfig, filepath.Join(s.Directory, "logs"), s.Datapath, s.MTU)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tREADY\tACCELERATOR\tIPV4\tIPV6\tMESSAGE")
	for _, n := range s.Nodes {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, yesNo(n.Ready), cmp.Or(n.Accelerator, "-"), n.IPv4, n.IPv6, n.Message)
	}
	fmt.Fprintln(table, "\nCOMPONENT\tHEALTHY\tPHASE\tPID\tUPTIME\tRESTARTS\tLOG\tMESSAGE")
	for _, c := range s.Components {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", c.Name, yesNo(c.Healthy), c.Phase, number(c.PID), uptime(c.Since), c.Restarts, baseName(c.Log), c.Message)
	}
	table.Flush()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// baseName shortens the path of a log; the directory stands above the table.
func baseName(path string) string {
	if path == "" {
		return "-"
	}
	return filepath.Base(path)
}

func number(pid int) string {
	if pid == 0 {
		return "-"
	}
	return fmt.Sprint(pid)
}

func uptime(since time.Time) string {
	if since.IsZero() {
		return "-"
	}
	return time.Since(since).Round(time.Second).String()
}
