package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"patchbay/internal/cluster/layout"
	"patchbay/internal/vmctl"
)

// vmFlags say which cluster and namespace the commands below "vm" work in.
type vmFlags struct {
	name       string
	kubeconfig string
	namespace  string
}

func newVMCommand() *cobra.Command {
	var f vmFlags
	cmd := &cobra.Command{
		Use:   "vm",
		Short: "Work with virtual machines: list, reach, start, stop, migrate, plug",
		Long: `Work with the virtual machines of a local cluster, or with --kubeconfig of another one. A machine is named NAME, vm/NAME, NAME.NAMESPACE or
vm/NAME/NAMESPACE.`,
		Example: `  patchbay vm list -A
  patchbay vm ssh patchbay@web-01
  patchbay vm plug web-01 --network blue-l2`,
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.name, "name", defaultName, "name of the local cluster")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of another cluster")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "namespace of the virtual machine (default: the kubeconfig's, or default)")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("name", completeNames))
	cmd.AddCommand(
		newVMListCommand(&f), newVMIPCommand(&f),
		newVMStartCommand(&f), newVMStopCommand(&f), newVMRestartCommand(&f), newVMPauseCommand(&f), newVMUnpauseCommand(&f), newVMMigrateCommand(&f),
		newVMPlugCommand(&f), newVMUnplugCommand(&f),
		newVMSSHCommand(&f), newVMCopyCommand(&f), newVMConsoleCommand(&f), newVMScreenCommand(&f), newVMForwardCommand(&f), newVMExposeCommand(&f),
	)
	return cmd
}

// file is the kubeconfig in use.
func (f *vmFlags) file() (string, error) {
	if f.kubeconfig != "" {
		return f.kubeconfig, nil
	}
	place, err := layout.New(f.name)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(place.Kubeconfig()); err != nil {
		return "", fmt.Errorf("cluster %q has no kubeconfig (%w); start it with `patchbay up%s`, or name another cluster's with --kubeconfig", f.name, err, nameFlag(f.name))
	}
	return place.Kubeconfig(), nil
}

// open connects to the cluster and fills in the namespace.
func (f *vmFlags) open() (*vmctl.Client, error) {
	file, err := f.file()
	if err != nil {
		return nil, err
	}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(&clientcmd.ClientConfigLoadingRules{ExplicitPath: file}, nil)
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if f.namespace == "" {
		if f.namespace, _, err = loader.Namespace(); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
	}
	return vmctl.New(config)
}

// machine connects and reads the name of a machine.
func (f *vmFlags) machine(text string) (*vmctl.Client, vmctl.Name, error) {
	c, err := f.open()
	if err != nil {
		return nil, vmctl.Name{}, err
	}
	name, err := vmctl.ParseName(text, f.namespace)
	return c, name, err
}

// machineCommand completes a command whose first argument is a machine: run is given the machine and the arguments after it. A command
// that says nothing of its arguments takes no others.
func (f *vmFlags) machineCommand(cmd *cobra.Command, run func(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, rest []string) error) *cobra.Command {
	if cmd.Args == nil {
		cmd.Args = cobra.ExactArgs(1)
	}
	if cmd.ValidArgsFunction == nil {
		cmd.ValidArgsFunction = f.completeMachine
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, m, err := f.machine(args[0])
		if err != nil {
			return err
		}
		return run(cmd, c, m, args[1:])
	}
	return cmd
}

// interruptible is the command's context until the user interrupts it.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
}

// completeLimit is how long a completion may keep a person waiting.
const completeLimit = 2 * time.Second

// completeMachine offers the machines of the namespace for the first argument.
func (f *vmFlags) completeMachine(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completeLimit)
	defer cancel()
	c, err := f.open()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, _ := c.List(ctx, f.namespace) // what cannot be read is not offered
	var names []string
	for _, m := range all {
		names = append(names, m.Name+"\t"+m.Status)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeInterface offers a machine's interfaces for the second argument.
func (f *vmFlags) completeInterface(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return f.completeMachine(cmd, args, word)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completeLimit)
	defer cancel()
	c, name, err := f.machine(args[0])
	if err != nil || len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, _ := c.Addresses(ctx, name)
	var names []string
	for _, a := range all {
		if a.Interface != "" {
			names = append(names, a.Interface+"\t"+a.Network)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
