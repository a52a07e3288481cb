package main

import "github.com/spf13/cobra"

// newRootCommand builds the whole command tree. One file of this package holds one command; each parses arguments and
// wires packages, and decides nothing else.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "patchbay",
		Short: "Virtual machines on Kubernetes with first-class networking",
		Long: `Patchbay runs virtual machines beside pods. A local cluster lives in its own network namespaces; the host's addresses, routes and
firewall stay as they are.

The environment variable PATCHBAY_HOME names the directory that holds the state of local clusters (default /var/lib/patchbay).`,
		Example: `  sudo patchbay quickstart            a cluster with two virtual machines and a Service
  sudo patchbay up                    a cluster
  patchbay kubectl get vm             what runs in it
  sudo patchbay down                  remove it without a trace
  source <(patchbay completion bash)  complete commands, flags and cluster names`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		newUpCommand(),
		newDownCommand(),
		newStatusCommand(),
		newSuperviseCommand(),
		newKubectlCommand(),
		newKubeconfigCommand(),
		newQuickstartCommand(),
		newVMCommand(),
		newImageCommand(),
		newAgentCommand(),
		newControllerCommand(),
		newDNSCommand(),
	)
	return root
}
