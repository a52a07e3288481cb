// Package controller is the cluster side of Patchbay: one process that holds what the controllers share (connections, caches,
// one HTTPS server) and runs them. The controllers are listed in parts.go and live in packages of their own that do not know
// each other. A controller that stops, however it stops, changes nothing: machines run and traffic flows without it.
package controller

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"patchbay/api/crds"
	"patchbay/internal/ovn"
	"patchbay/internal/settings"
)

// Config is what the command line says.
type Config struct {
	Settings   settings.Settings
	Kubeconfig string
	NB, SB     string         // endpoints of OVN's databases
	Listen     netip.AddrPort // of the webhooks and the aggregated API; an address that the API server reaches
	TLSDir     string         // tls.crt and tls.key for serving and for calling agents, ca.crt that signed both sides
	Log        *slog.Logger
}

// Host is what the parts of a controller share.
type Host struct {
	Config
	REST *rest.Config
	// Manager carries the Kubernetes client and cache and runs the parts.
	Manager manager.Manager
	// Direct reads and writes the API server itself, not the cache.
	Direct client.Client
	// Mux is served on Listen once all parts are added.
	Mux *http.ServeMux
	// Rows is OVN's northbound database as the parts want it. A part says its rows by owner and announces itself with Expect.
	Rows *ovn.Store
	// Southbound is for what northd does not do.
	Southbound *ovn.Southbound
	// Refused is told whose rows the database does not take. Parts add to it before the manager starts.
	Refused []func(owner string, err error)
	// Carried tells whether the overlay still has a network. The part "network" sets it.
	Carried func(network string) bool
	// Certificate is the controller's own; Authority (PEM) and Roots signed it and those of the agents.
	Certificate tls.Certificate
	Authority   []byte
	Roots       *x509.CertPool
}

// Part is one job of the controller. Add registers what it does with the host and returns; it must not block.
type Part struct {
	Name string
	Add  func(ctx context.Context, h *Host) error
}

// shutdown bounds how long running requests and reconciliations may take to end.
const shutdown = 5 * time.Second

// Run runs the parts until the context ends or one of them fails. The definitions of Patchbay's kinds are applied first.
func Run(ctx context.Context, c Config, parts []Part) error {
	ctrllog.SetLogger(logr.FromSlogHandler(c.Log.Handler()))
	unlock, err := onlyOne(ctx, c)
	if err != nil {
		return err
	}
	defer unlock()
	h, err := open(c)
	if err != nil {
		return err
	}
	if err := crds.Apply(ctx, h.REST); err != nil {
		return err
	}
	c.Log.Info("definitions applied")
	for _, run := range []manager.RunnableFunc{h.serve, h.Rows.Run} {
		if err := h.Manager.Add(run); err != nil {
			return err
		}
	}
	for _, part := range parts {
		if err := part.Add(ctx, h); err != nil {
			return fmt.Errorf("start %s: %w", part.Name, err)
		}
	}
	return h.Manager.Start(ctx)
}

func open(c Config) (*Host, error) {
	h := &Host{Config: c, Mux: http.NewServeMux()}
	if err := h.readCertificates(); err != nil {
		return nil, err
	}
	var err error
	if h.REST, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig); err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	h.REST.UserAgent = "patchbay-controller"
	h.REST.QPS = -1 // machines that start together must not wait for each other; the API server has its own fairness
	scheme := newScheme()
	if h.Direct, err = client.New(h.REST, client.Options{Scheme: scheme}); err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	leader, err := leaderLock(h.REST)
	if err != nil {
		return nil, err
	}
	graceful := shutdown
	h.Manager, err = manager.New(h.REST, manager.Options{
		Scheme:                  scheme,
		Cache:                   cache.Options{DefaultTransform: cache.TransformStripManagedFields()},
		Metrics:                 server.Options{BindAddress: "0"},
		GracefulShutdownTimeout: &graceful,
		LeaderElection:          true,

		LeaderElectionResourceLockInterface: leader,
		// The process ends with its leadership, so the next one need not wait for the lease to run out.
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	h.openOverlay()
	return h, nil
}

func (h *Host) readCertificates() (err error) {
	file := func(name string) string { return filepath.Join(h.TLSDir, name) }
	if h.Certificate, err = tls.LoadX509KeyPair(file("tls.crt"), file("tls.key")); err != nil {
		return fmt.Errorf("read the controller's certificate: %w", err)
	}
	if h.Authority, err = os.ReadFile(file("ca.crt")); err != nil {
		return fmt.Errorf("read the controller's authority: %w", err)
	}
	h.Roots = x509.NewCertPool()
	if !h.Roots.AppendCertsFromPEM(h.Authority) {
		return fmt.Errorf("%s holds no certificate", file("ca.crt"))
	}
	return nil
}

// serve answers webhooks and the aggregated API until the context ends.
func (h *Host) serve(ctx context.Context) error {
	listener, err := net.Listen("tcp", h.Listen.String())
	if err != nil {
		return fmt.Errorf("listen for the API server: %w", err)
	}
	web := &http.Server{
		Handler:           h.Mux,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(h.Log.With("part", "https").Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{h.Certificate},
			MinVersion:   tls.VersionTLS12,
			// The aggregated API checks the API server's front-proxy certificate itself; webhooks bring none.
			ClientAuth: tls.RequestClientCert,
		},
	}
	done := make(chan error, 1)
	go func() { done <- web.ServeTLS(listener, "", "") }()
	select {
	case err := <-done:
		return fmt.Errorf("serve the API server: %w", err)
	case <-ctx.Done():
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdown)
	defer cancel()
	if err := web.Shutdown(bounded); err != nil {
		web.Close() // consoles and port forwards do not end by themselves
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
