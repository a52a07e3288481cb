// Package subresource serves subresources.kubevirt.io, the verbs of virtual machines that are not objects: start, stop, console,
// port forwarding. It is an aggregated API: the API server passes requests on, this package checks who asks and whether they may,
// decides, and either writes the VM or hands the request to the agent of the node where the machine runs.
//
// What a verb does to a VM is decided by pure functions (lifecycle.go); what a running machine does is the agent's work.
package subresource

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// Group is the API group that this package serves.
	Group = "subresources.kubevirt.io"
	// AgentPort is where every node's agent takes requests about its machines, in TCP.
	AgentPort = "8186"
)

// versions are served alike; the first is preferred.
var versions = []string{"v1", "v1alpha3"}

// Config is what a Server is made of.
type Config struct {
	// Client reads and writes the API server itself, not a cache: a decision on a stale VM would be undone.
	Client client.Client
	// Authenticator finds out who asks; FrontProxy makes the one that trusts the API server.
	Authenticator authenticator.Request
	// AgentTLS is how agents are called: with the controller's certificate, trusting the agents' authority.
	AgentTLS *tls.Config
	// Dial connects to agents; nil means the process's own network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Version is what clients compare their own version with; DefaultVersion when empty.
	Version string
	Log     *slog.Logger
}

// Server is the handler of everything below /apis, /openapi and the health checks that the API server asks of an aggregated API. It
// must be served over TLS that asks clients for a certificate (tls.RequestClientCert), which the Authenticator looks at.
type Server struct {
	Config
	mux       *http.ServeMux
	transport *http.Transport
}

// NewServer makes a server.
func NewServer(config Config) *Server {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{Config: config, mux: http.NewServeMux(), transport: newTransport(config)}
	s.routes()
	return s
}

// Paths are what a process that serves more than this API routes to the Server.
func Paths() []string {
	return []string{"/apis", "/apis/", "/openapi/", "/healthz", "/livez", "/readyz"}
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }
