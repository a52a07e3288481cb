package main

import (
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"patchbay/internal/agent"
	"patchbay/internal/settings"
)

// newAgentCommand runs what a node needs. Its jobs are listed in internal/agent/parts.go.
func newAgentCommand() *cobra.Command {
	var c agent.Config
	var settingsFile, logFormat string
	command := &cobra.Command{
		Use:   "agent",
		Short: "Connect this node's pods and virtual machines",
		Long: `Run what a node needs beside kubelet: the CNI server, node ports and egress, the virtual machines' network cards, QEMU's monitor,
consoles, local volumes. It must run in the node's network namespace and may be killed at any time: guests run on.

The supervisor of a local cluster starts it.`,
		Example:     `  patchbay agent --settings settings.json --kubeconfig agent.kubeconfig --node node-1 --dir nodes/node-1 --ovs unix:nodes/node-1/ovs/db.sock`,
		Annotations: exits("0 after SIGTERM", "1 when it cannot go on"),
		Args:        cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if c.Settings, err = settings.Load(settingsFile); err != nil {
				return err
			}
			if c.BinDir == "" {
				program, err := os.Executable()
				if err != nil {
					return err
				}
				c.BinDir = filepath.Dir(program)
			}
			if c.Log, err = newLogger(os.Stderr, logFormat); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return agent.Run(ctx, c, agent.Parts())
		},
	}
	flags := command.Flags()
	flags.StringVar(&settingsFile, "settings", "", "file with the cluster's settings")
	flags.StringVar(&c.Kubeconfig, "kubeconfig", "", "kubeconfig file of the agent")
	flags.StringVar(&c.Node, "node", "", "name of this Kubernetes node")
	flags.StringVar(&c.Dir, "dir", "", "directory of this node")
	flags.StringVar(&c.OVS, "ovs", "unix:/run/openvswitch/db.sock", "Open vSwitch database of this node")
	flags.StringVar(&c.BinDir, "bin-dir", "", "directory that holds patchbay-cni (default: that of this program)")
	flags.BoolVar(&c.AnyNetns, "any-netns", false, "work in this network namespace even if none of the node's addresses is in it")
	flags.StringVar(&logFormat, "log-format", "text", "text or json")
	for _, name := range []string{"settings", "kubeconfig", "node", "dir"} {
		_ = command.MarkFlagRequired(name)
	}
	return command
}
