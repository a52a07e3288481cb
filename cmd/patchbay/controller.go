package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"patchbay/internal/controller"
	"patchbay/internal/settings"
)

// newControllerCommand runs what a cluster needs once. Its jobs are listed in internal/controller/parts.go.
func newControllerCommand() *cobra.Command {
	var c controller.Config
	var settingsFile, listen, logFormat string
	command := &cobra.Command{
		Use:   "controller",
		Short: "Run the cluster's controllers, webhooks and aggregated API",
		Long: `Run what a cluster needs once: admission, virtual machines, addresses and the overlay's rows, volumes, subresources. It may be killed at any
time: running machines run on, new ones wait.

The supervisor of a local cluster starts it.`,
		Example:     `  patchbay controller --settings settings.json --kubeconfig controller.kubeconfig --nb unix:ovn/nb.sock --sb unix:ovn/sb.sock --listen 172.30.0.1:9443 --tls-dir pki/controller`,
		Annotations: exits("0 after SIGTERM", "1 when it cannot go on"),
		Args:        cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if c.Settings, err = settings.Load(settingsFile); err != nil {
				return err
			}
			if c.Listen, err = netip.ParseAddrPort(listen); err != nil {
				return fmt.Errorf("--listen wants ADDRESS:PORT: %w", err)
			}
			if c.Log, err = newLogger(os.Stderr, logFormat); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return controller.Run(ctx, c, controller.Parts())
		},
	}
	flags := command.Flags()
	flags.StringVar(&settingsFile, "settings", "", "file with the cluster's settings")
	flags.StringVar(&c.Kubeconfig, "kubeconfig", "", "kubeconfig file of the controller")
	flags.StringVar(&c.NB, "nb", "", "endpoint of OVN's northbound database")
	flags.StringVar(&c.SB, "sb", "", "endpoint of OVN's southbound database")
	flags.StringVar(&listen, "listen", "", "address and port for the API server's requests")
	flags.StringVar(&c.TLSDir, "tls-dir", "", "directory with tls.crt, tls.key and ca.crt")
	flags.StringVar(&logFormat, "log-format", "text", "text or json")
	for _, name := range []string{"settings", "kubeconfig", "nb", "sb", "listen", "tls-dir"} {
		_ = command.MarkFlagRequired(name)
	}
	return command
}
