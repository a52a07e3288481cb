package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"patchbay/internal/cluster"
	"patchbay/internal/cluster/layout"
)

func newUpCommand() *cobra.Command {
	var (
		name    string
		request cluster.UpRequest
		output  outputFormat
		merge   bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a local cluster, or heal one that lost processes",
		Long: `Start a local cluster and wait until all its nodes are ready.

Every node is a network namespace of this host with its own Open vSwitch, containerd and kubelet. The host's addresses, routes
and firewall stay as they are. Run again, it starts what is missing and leaves the rest alone; interrupted, it goes on from there.`,
		Example: `  sudo patchbay up
  sudo patchbay up --name test --nodes 3 --api-port 7443
  sudo patchbay up --mtu 9000                  jumbo frames: guests get 8900
  sudo patchbay up --extra-nic 1               a card eth1 on every node, for NodeNetworkConfigurationPolicy
  sudo patchbay up --expose                    NodePorts on this host, and a way out for guests
  sudo patchbay up --merge-kubeconfig          kubectl, oc and virtctl find the cluster`,
		Annotations: exits("0 when all nodes are ready", "1 when they are not within --timeout, or the host lacks something; what was started stays, up goes on from there"),
		Args:        cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			place, err := layout.New(name)
			if err != nil {
				return err
			}
			request.Cluster = place
			for _, flag := range []string{"nodes", "api-port", "mtu"} {
				if value, err := cmd.Flags().GetInt(flag); err != nil || (value == 0 && cmd.Flags().Changed(flag)) {
					return fmt.Errorf("--%s is 0; leave the flag out for the default", flag)
				}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%v are over", timeout))
			defer cancel()
			progress := newProgressLine(os.Stderr)
			request.Report = progress.show
			status, err := cluster.Up(ctx, request)
			progress.end()
			if err != nil {
				return err
			}
			merged := ""
			if merge {
				if merged, err = cluster.MergeKubeconfig(place); err != nil {
					return err
				}
			}
			return output.print(cmd.OutOrStdout(), status, func(w io.Writer) { printUp(w, status, merged) })
		},
	}
	flags := cmd.Flags()
	addNameFlag(cmd, &name)
	output.addFlag(cmd)
	flags.IntVar(&request.Nodes, "nodes", 0, fmt.Sprintf("number of nodes (default %d)", cluster.DefaultNodes))
	flags.IntVar(&request.APIPort, "api-port", 0, fmt.Sprintf("port of the Kubernetes API on 127.0.0.1 (default %d)", cluster.DefaultAPIPort))
	flags.IntVar(&request.MTU, "mtu", 0, fmt.Sprintf("MTU of the network that joins the nodes; pods get 100 less (default %d)", cluster.DefaultMTU))
	flags.IntVar(&request.ExtraNICs, "extra-nic", 0, "further network cards of every node (eth1 …), each in a network of its own that joins the nodes, for bridges and VLANs of yours")
	flags.BoolVar(&request.Expose, "expose", false, "give this host a leg in the nodes' network, and the cluster a way out through this host; changes the host's routes and firewall")
	flags.BoolVar(&merge, "merge-kubeconfig", false, "add the cluster to your own kubeconfig file and make it the current one")
	flags.DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait for the nodes")
	return cmd
}

func printUp(w io.Writer, s cluster.Status, merged string) {
	fmt.Fprintf(w, "Cluster %q is ready: %d nodes, %s datapath, API at %s\n", s.Name, len(s.Nodes), s.Datapath, s.API)
	if merged != "" {
		fmt.Fprintf(w, "It is the current context of %s.\n", merged)
		return
	}
	fmt.Fprintf(w, "Use it with:  patchbay kubectl%s get nodes   or   export KUBECONFIG=%s\n", nameFlag(s.Name), s.Kubeconfig)
}

// nameFlag is the flag that chooses a cluster, empty for the default one.
func nameFlag(name string) string {
	if name == defaultName {
		return ""
	}
	return " --name " + name
}

// progressLine keeps one line of a terminal up to date; elsewhere it prints a line when something changed.
type progressLine struct {
	file     *os.File
	terminal bool
	last     string
}

func newProgressLine(file *os.File) *progressLine {
	info, err := file.Stat()
	return &progressLine{file: file, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

func (p *progressLine) show(now cluster.Progress) {
	text := fmt.Sprintf("%d of %d ready", now.Ready, now.Total)
	if len(now.Waiting) > 0 {
		text += "; waiting for " + abbreviate(now.Waiting, 4)
	}
	p.say(now.Elapsed, text)
}

func (p *progressLine) say(elapsed time.Duration, text string) {
	if text == p.last && !p.terminal {
		return
	}
	p.last = text
	if p.terminal {
		fmt.Fprintf(p.file, "\r\033[K%5.1fs  %s", elapsed.Seconds(), text)
		return
	}
	fmt.Fprintf(p.file, "%5.1fs  %s\n", elapsed.Seconds(), text)
}

func (p *progressLine) end() {
	if p.terminal && p.last != "" {
		fmt.Fprintln(p.file)
	}
}

func abbreviate(list []string, count int) string {
	if len(list) <= count {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:count], ", "), len(list)-count)
}
