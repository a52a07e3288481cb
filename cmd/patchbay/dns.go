package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"patchbay/internal/dns"
	"patchbay/internal/settings"
)

const readyPort = 8181

// newDNSCommand runs the cluster's name server.
func newDNSCommand() *cobra.Command {
	var settingsFile, resolvConf string
	var listen, upstreams []string
	var c dns.Config
	command := &cobra.Command{
		Use:   "dns",
		Short: "Answer the cluster's DNS queries",
		Long: `Run the cluster's name server: Services, endpoints and pods from the Kubernetes API, forward and reverse; other names go to resolvers outside
when there are any, else they are refused at once.

The supervisor of a local cluster starts it.`,
		Example:     `  patchbay dns --settings settings.json --kubeconfig dns.kubeconfig --listen 172.30.0.1:53 --listen [fd00:172:30::1]:53`,
		Annotations: exits("0 after SIGTERM", "1 when it cannot go on"),
		Args:        cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := settings.Load(settingsFile)
			if err != nil {
				return err
			}
			c.Domain = s.ClusterDomain
			if c.Listen, err = parseAddresses("--listen", listen); err != nil {
				return err
			}
			if c.Upstreams, err = parseAddresses("--upstream", upstreams); err != nil {
				return err
			}
			if len(c.Upstreams) == 0 {
				if c.Upstreams, err = dns.HostResolvers(resolvConf, c.Listen); err != nil {
					return err
				}
			}
			if len(c.Listen) > 0 {
				c.Ready = netip.AddrPortFrom(c.Listen[0].Addr(), readyPort)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return dns.Run(ctx, c)
		},
	}
	flags := command.Flags()
	flags.StringVar(&settingsFile, "settings", "", "file with the cluster's settings")
	flags.StringVar(&c.Kubeconfig, "kubeconfig", "", "kubeconfig file of the name server")
	flags.StringArrayVar(&listen, "listen", nil, "address and port to answer at; may be repeated")
	flags.StringArrayVar(&upstreams, "upstream", nil, "resolver for names outside the cluster, address:port; may be repeated (default: those of --resolv-conf that can be reached)")
	flags.StringVar(&resolvConf, "resolv-conf", "/etc/resolv.conf", "file that names the host's resolvers")
	for _, name := range []string{"settings", "kubeconfig", "listen"} {
		_ = command.MarkFlagRequired(name)
	}
	return command
}

func parseAddresses(flag string, texts []string) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for _, text := range texts {
		a, err := netip.ParseAddrPort(text)
		if err != nil {
			return nil, fmt.Errorf("%s %q: want an address and a port, such as 172.30.0.1:53: %w", flag, text, err)
		}
		out = append(out, a)
	}
	return out, nil
}
