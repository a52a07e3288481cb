package components

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"patchbay/internal/cluster/kubeconfig"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/namespace"
	"patchbay/internal/cluster/openvswitch"
)

type (
	probe = func(context.Context) error
	dial  = func(ctx context.Context, network, address string) (net.Conn, error)
)

// unixProbe is content when somebody accepts connections on a socket.
func unixProbe(socket string) probe {
	return func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

func (in Input) fabricTCP(address netip.AddrPort) probe {
	return func(ctx context.Context) error {
		conn, err := namespace.DialContext(in.Cluster.FabricNamespace())(ctx, "tcp", address.String())
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

func (in Input) fabricHTTP(url string) probe {
	return httpProbe(namespace.DialContext(in.Cluster.FabricNamespace()), url)
}

// httpProbe asks a health address inside a namespace of the cluster's own. Nothing is sent that a false server could use, so any
// certificate will do.
func httpProbe(dial dial, url string) probe {
	return func(ctx context.Context) error {
		return getHealth(ctx, &http.Transport{DialContext: dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, url)
	}
}

// apiReady asks the API server as an authenticated client.
func (in Input) apiReady() probe {
	return func(ctx context.Context) error {
		config, err := kubeconfig.Read(in.Cluster.ComponentKubeconfig("supervisor"))
		if err != nil {
			return err
		}
		pair, err := tls.X509KeyPair(config.ClientCert, config.ClientKey)
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(config.CA)
		transport := &http.Transport{
			DialContext: namespace.DialContext(in.Cluster.FabricNamespace()), DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
		}
		return getHealth(ctx, transport, "https://"+netip.AddrPortFrom(layout.ControlPlane4, layout.APIPort).String()+"/readyz")
	}
}

func getHealth(ctx context.Context, transport *http.Transport, url string) error {
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, response.Status, failedChecks(string(body)))
	}
	return nil
}

// failedChecks keeps the lines of a Kubernetes health answer that tell of trouble.
func failedChecks(body string) string {
	var failed []string
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "[-]") {
			failed = append(failed, strings.TrimSpace(line))
		}
	}
	if len(failed) == 0 {
		return strings.TrimSpace(body)
	}
	return strings.Join(failed, "; ")
}

// controlProbe asks a daemon of Open vSwitch or OVN on its control socket.
func controlProbe(socket, command string) probe {
	return func(ctx context.Context) error {
		_, err := openvswitch.Control(ctx, socket, command)
		return err
	}
}

// connectedToSouthbound is content when the node's ovn-controller follows the southbound database. It has no choice of control
// socket: the name holds its process number, and a killed one leaves its socket behind.
func connectedToSouthbound(runDir string) probe {
	return func(ctx context.Context) error {
		sockets, err := filepath.Glob(filepath.Join(runDir, "ovn-controller.*.ctl"))
		if err != nil {
			return err
		}
		lastErr := errors.New("ovn-controller has no control socket yet")
		for _, socket := range sockets {
			state, err := openvswitch.Control(ctx, socket, "connection-status")
			switch {
			case err != nil && ownerEnded(socket):
				_ = os.Remove(socket)
			case err != nil:
				lastErr = err
			case state != "connected":
				lastErr = fmt.Errorf("ovn-controller is %s with the southbound database; look into its log", state)
			default:
				return nil
			}
		}
		return lastErr
	}
}

// ownerEnded tells whether the process whose number stands in a control socket's name is gone. A refused connection does not tell: a
// daemon that just starts refuses, too, between binding its socket and listening on it.
func ownerEnded(socket string) bool {
	parts := strings.Split(filepath.Base(socket), ".")
	pid, err := strconv.Atoi(parts[max(len(parts)-2, 0)])
	return err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

func containerdProbe(socket string) probe {
	return func(ctx context.Context) error {
		// A dial of a socket that is not there would wait for its whole timeout.
		if err := unixProbe(socket)(ctx); err != nil {
			return err
		}
		client, err := containerd.New(socket)
		if err != nil {
			return err
		}
		defer client.Close()
		serving, err := client.IsServing(ctx)
		if err == nil && !serving {
			err = errors.New("containerd does not serve yet")
		}
		return err
	}
}
