package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"patchbay/internal/vmctl"
)

func newVMListCommand(f *vmFlags) *cobra.Command {
	var (
		everywhere bool
		output     outputFormat
	)
	cmd := &cobra.Command{
		Use:               "list",
		Aliases:           []string{"ls"},
		Short:             "List virtual machines",
		Long:              "List the virtual machines of a namespace, or with -A of all, with where they run and their first interface's addresses.",
		Example:           "  patchbay vm list\n  patchbay vm list -A --output json",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			namespace := f.namespace
			if everywhere {
				namespace = ""
			}
			all, err := c.List(cmd.Context(), namespace)
			if err != nil {
				return err
			}
			return output.print(cmd.OutOrStdout(), all, func(w io.Writer) { printMachines(w, all, everywhere) })
		},
	}
	cmd.Flags().BoolVarP(&everywhere, "all-namespaces", "A", false, "of all namespaces")
	output.addFlag(cmd)
	return cmd
}

func printMachines(w io.Writer, all []vmctl.Machine, everywhere bool) {
	if len(all) == 0 {
		fmt.Fprintln(w, "no virtual machines; `patchbay vm list -A` looks in all namespaces")
		return
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer table.Flush()
	head := ""
	if everywhere {
		head = "NAMESPACE\t"
	}
	fmt.Fprintln(table, head+"NAME\tSTATUS\tREADY\tNODE\tIP\tAGE")
	for _, m := range all {
		if everywhere {
			fmt.Fprintf(table, "%s\t", m.Namespace)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, m.Status, yesNo(m.Ready), cmp.Or(m.Node, "-"),
			cmp.Or(strings.Join(m.IPs, ","), "-"), duration.HumanDuration(m.Age(time.Now())))
	}
}

func newVMIPCommand(f *vmFlags) *cobra.Command {
	var output outputFormat
	cmd := f.machineCommand(&cobra.Command{
		Use:   "ip MACHINE",
		Short: "Show the interfaces and addresses of a running virtual machine",
		Long: `Show each interface of a running virtual machine: its network, binding, MAC and IP addresses, its name in the guest, and who says so: the
machine itself (domain), the guest's agent (guest-agent), the pod's attachments (multus-status), the network's traffic (observed). Where what
the network gave, what the guest's agent says and what the guest is heard to use contradict each other, all of it is shown; JSON holds it always.`,
		Example: "  patchbay vm ip web-01\n  patchbay vm ip web-01 --output json | jq -r '.[0].ips[0]'",
	}, func(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, _ []string) error {
		all, err := c.Addresses(cmd.Context(), m)
		if err != nil {
			return err
		}
		return output.print(cmd.OutOrStdout(), all, func(w io.Writer) { printAddresses(w, all) })
	})
	output.addFlag(cmd)
	return cmd
}

func printAddresses(w io.Writer, all []vmctl.Address) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "INTERFACE\tNETWORK\tBINDING\tMAC\tGUEST\tLINK\tIP\tSOURCE")
	for _, a := range all {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cmp.Or(a.Interface, "-"), cmp.Or(a.Network, "-"), cmp.Or(a.Binding, "-"), cmp.Or(a.MAC, "-"),
			cmp.Or(a.GuestName, "-"), cmp.Or(a.Link, "-"), cmp.Or(strings.Join(a.IPs, ","), "-"), strings.Join(a.Sources, ","))
	}
	table.Flush()
	for _, a := range all {
		if a.Said != nil && a.Said.Disagree {
			printDisagreement(w, a)
		}
	}
}

// printDisagreement prints who says what of an interface.
func printDisagreement(w io.Writer, a vmctl.Address) {
	fmt.Fprintf(w, "\nThe sources of %s's addresses disagree:\n", a.Interface)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer table.Flush()
	for _, source := range []struct {
		name string
		ips  []string
	}{{"the network gave", a.Said.Network}, {"the guest agent says", a.Said.GuestAgent}, {"heard on the network", a.Said.Observed}} {
		fmt.Fprintf(table, "  %s\t%s\n", source.name, cmp.Or(strings.Join(source.ips, ","), "-"))
	}
}
