package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"

	"patchbay/internal/vmctl"
)

// escape is Ctrl+].
const escape = 0x1d

func newVMConsoleCommand(f *vmFlags) *cobra.Command {
	return f.machineCommand(&cobra.Command{
		Use:   "console MACHINE",
		Short: "Connect to the serial console of a virtual machine",
		Long: `Connect this terminal to the serial console of a virtual machine. Ctrl+] leaves it. A console has one user at a time: a new one
disconnects the old one.`,
		Example: "  patchbay vm console web-01",
	}, func(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, _ []string) error {
		console, err := c.Console(cmd.Context(), m)
		if err != nil {
			return err
		}
		defer console.Close()
		fmt.Fprintf(os.Stderr, "Successfully connected to %s console. Press Ctrl+] to exit console.\n", m.Name)
		if descriptor := int(os.Stdin.Fd()); term.IsTerminal(descriptor) {
			old, err := term.MakeRaw(descriptor)
			if err != nil {
				return fmt.Errorf("set the terminal up: %w", err)
			}
			defer func() { _ = term.Restore(descriptor, old) }()
		}
		return vmctl.Join(cmd.Context(), &terminal{}, console)
	})
}

// terminal is standard input and output, up to the escape key.
type terminal struct{}

func (t *terminal) Read(p []byte) (int, error) {
	n, err := os.Stdin.Read(p)
	if i := strings.IndexByte(string(p[:n]), escape); i >= 0 {
		return i, io.EOF
	}
	return n, err
}

func (t *terminal) Write(p []byte) (int, error) { return os.Stdout.Write(p) }

func (t *terminal) Close() error { return os.Stdin.Close() }

func newVMScreenCommand(f *vmFlags) *cobra.Command {
	var address string
	var local uint16
	cmd := f.machineCommand(&cobra.Command{
		Use:   "vnc MACHINE",
		Short: "Offer the screen of a virtual machine to a VNC viewer",
		Long:  "Listen on a port of this host for VNC viewers of a virtual machine's screen, until it is interrupted. The port is printed as JSON.",
		Example: `  patchbay vm vnc web-01 --port 5901
  vncviewer 127.0.0.1:5901`,
	}, func(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, _ []string) error {
		ctx, stop := interruptible(cmd)
		defer stop()
		return c.ServeScreen(ctx, m, address, local, func(port int) { fmt.Fprintf(cmd.OutOrStdout(), "{\"port\":%d}\n", port) }, complain)
	})
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "address to listen on")
	cmd.Flags().Uint16Var(&local, "port", 0, "port to listen on; 0: any")
	return cmd
}

// complain says what went wrong with one connection of many.
func complain(err error) { fmt.Fprintln(os.Stderr, "patchbay: "+err.Error()) }

func newVMForwardCommand(f *vmFlags) *cobra.Command {
	var (
		address string
		stdio   bool
	)
	cmd := f.machineCommand(&cobra.Command{
		Use:   "port-forward MACHINE [tcp/|udp/]LOCAL[:REMOTE]…",
		Short: "Connect ports of this host with ports of a virtual machine",
		Long: `Listen on ports of this host and pass what arrives on to ports of the guest, until it is interrupted. With --stdio, standard input and output
are connected with one port of the guest instead, as ssh's ProxyCommand wants it; nothing but the guest's bytes is printed.`,
		Example: `  patchbay vm port-forward web-01 8080:80
  patchbay vm port-forward web-01 5353:53 udp/5353:53
  ssh -o ProxyCommand='patchbay vm port-forward --stdio %h %p' patchbay@vm/web-01.default`,
		Args: cobra.MinimumNArgs(2),
	}, func(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, rest []string) error {
		var all []vmctl.Forwarding
		for _, text := range rest {
			forwarding, err := vmctl.ParseForwarding(text)
			if err != nil {
				return err
			}
			all = append(all, forwarding)
		}
		ctx, stop := interruptible(cmd)
		defer stop()
		if !stdio {
			return c.ForwardAll(ctx, m, all, address, func(forwarding vmctl.Forwarding, port int) {
				fmt.Fprintf(cmd.OutOrStdout(), "%s port %d leads to %s port %d\n", forwarding.Protocol, port, m.Name, forwarding.Remote)
			}, complain)
		}
		if len(all) != 1 {
			return errors.New("only one port supported when forwarding to stdout")
		}
		tunnel, err := c.Dial(ctx, m, all[0].Protocol, all[0].Remote)
		if err != nil {
			return err
		}
		return vmctl.Join(ctx, standard{}, tunnel)
	})
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "address to listen on")
	cmd.Flags().BoolVar(&stdio, "stdio", false, "connect standard input and output")
	return cmd
}

// standard is standard input and output.
type standard struct{}

func (standard) Read(p []byte) (int, error)  { return os.Stdin.Read(p) }
func (standard) Write(p []byte) (int, error) { return os.Stdout.Write(p) }
func (standard) Close() error                { return os.Stdin.Close() }

func newVMExposeCommand(f *vmFlags) *cobra.Command {
	var (
		e        vmctl.Exposure
		kind     string
		protocol string
		output   outputFormat
	)
	cmd := f.machineCommand(&cobra.Command{
		Use:   "expose MACHINE --service NAME",
		Short: "Make a Service in front of a virtual machine",
		Long: `Make a Service that leads to a virtual machine wherever it runs, and that is deleted with it. Without --port it has the ports that the machine's
interfaces declare.`,
		Example: `  patchbay vm expose web-01 --service web --port 80
  patchbay vm expose web-01 --service ssh --port 22 --type NodePort`,
	}, func(cmd *cobra.Command, c *vmctl.Client, m vmctl.Name, _ []string) error {
		e.Type, e.Protocol = corev1.ServiceType(kind), corev1.Protocol(protocol)
		service, err := c.Expose(cmd.Context(), m, e)
		if err != nil {
			return err
		}
		return output.print(cmd.OutOrStdout(), service, func(w io.Writer) {
			fmt.Fprintf(w, "Service %s successfully created for vm %s\n", service.Name, m.Name)
		})
	})
	flags := cmd.Flags()
	flags.StringVar(&e.Service, "service", "", "name of the Service")
	flags.StringVar(&kind, "type", "ClusterIP", "ClusterIP, NodePort or LoadBalancer")
	flags.StringVar(&protocol, "protocol", "TCP", "TCP or UDP")
	flags.Int32Var(&e.Port, "port", 0, "port of the Service")
	flags.Int32Var(&e.TargetPort, "target-port", 0, "port of the guest (default: --port)")
	flags.BoolVar(&e.Headless, "headless", false, "without a cluster IP: the name leads to the machine's own address")
	cobra.CheckErr(cmd.MarkFlagRequired("service"))
	output.addFlag(cmd)
	return cmd
}
