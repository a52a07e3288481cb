package main

import "github.com/spf13/cobra"

// newRootCommand builds the whole command tree. One file of this package holds one command; each parses arguments and
// wires packages, and decides nothing else.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "patchbay",
		Short:         "Virtual machines on Kubernetes with first-class networking",
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
		newImageCommand(),
		newAgentCommand(),
		newControllerCommand(),
		newDNSCommand(),
	)
	return root
}
