// Package access is the node's door to its virtual machines: an HTTPS server on the node's address that carries consoles, screens
// and port forwards as websockets and takes requests such as pause. Only the cluster's controller may knock; it has
// authorised the user before. The package must not know how a machine is run: that is behind the interface Machines.
package access

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	virtv1 "kubevirt.io/api/core/v1"
)

// Port is where every node listens, in TCP.
const Port = 8186

// ControllerName is the common name of the only client that is served.
const ControllerName = "patchbay:controller"

// Machines finds the virtual machines of this node.
type Machines interface {
	// Machine returns a virtual machine instance of this node. Its error is what the user is told (an API status).
	Machine(namespace, name string) (Machine, error)
}

// Machine is one virtual machine that runs on this node. Errors of methods are what the user is told.
type Machine interface {
	// VMI is the machine's object as last seen.
	VMI() *virtv1.VirtualMachineInstance
	// DialSocket connects to a socket of the pod's run directory, by its name in package protocol.
	DialSocket(ctx context.Context, name string) (net.Conn, error)
	// DialGuest connects to a port of the guest; network is tcp or udp.
	DialGuest(ctx context.Context, network string, port uint16) (net.Conn, error)

	Pause(ctx context.Context) error
	Unpause(ctx context.Context) error
	Reset(ctx context.Context) error
	SoftReboot(ctx context.Context) error

	// Freeze stops writes to the guest's file systems; they go on after limit, if it is not 0, or with Unfreeze.
	Freeze(ctx context.Context, limit time.Duration) error
	Unfreeze(ctx context.Context) error
	// Screenshot is what the guest's screen shows, as PNG.
	Screenshot(ctx context.Context) ([]byte, error)
	// MigrationProgress is how far a live migration is that sends the guest away.
	MigrationProgress(ctx context.Context) (MigrationProgress, error)
	// Addresses is who says which addresses the machine's interfaces have.
	Addresses() ([]AddressSources, error)

	GuestInfo(ctx context.Context) (virtv1.VirtualMachineInstanceGuestAgentInfo, error)
	Users(ctx context.Context) (virtv1.VirtualMachineInstanceGuestOSUserList, error)
	Filesystems(ctx context.Context) (virtv1.VirtualMachineInstanceFileSystemList, error)
}

// MigrationProgress is how far a live migration is.
type MigrationProgress struct {
	State            string `json:"state"` // QEMU's word for it; empty when none was started
	TotalBytes       int64  `json:"totalBytes"`
	RemainingBytes   int64  `json:"remainingBytes"`
	TransferredBytes int64  `json:"transferredBytes"`
	// BitsPerSecond is the rate of the last moments.
	BitsPerSecond int64 `json:"bitsPerSecond"`
	// DowntimeMilliseconds is how long the guest stands still when it moves, as expected until it has moved.
	DowntimeMilliseconds int64 `json:"downtimeMilliseconds"`
	ElapsedMilliseconds  int64 `json:"elapsedMilliseconds"`
}

// AddressSources is who says which addresses an interface has.
type AddressSources struct {
	Interface string   `json:"interface"`
	Network   []string `json:"network,omitempty"`    // that it gave
	Agent     []string `json:"guestAgent,omitempty"` // that the guest has
	Observed  []string `json:"observed,omitempty"`   // that the guest was heard to use
	// Disagree says that they contradict each other.
	Disagree bool `json:"disagree,omitempty"`
}

// Config is what a Server needs.
type Config struct {
	Machines Machines
	// TLSDir holds tls.crt, tls.key and ca.crt; they are read for every connection, so that new ones count at once.
	TLSDir string
	Log    *slog.Logger
}

// Server serves until its context ends.
type Server struct {
	Config
	sessions sessions
	streams  gate // websockets, which the HTTP server does not wait for
}

// New makes a server.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{Config: c}
}

// requestLimit is how long the header of a request may take, idleLimit how long a connection may wait for the next one.
const (
	requestLimit = 10 * time.Second
	idleLimit    = 2 * time.Minute
)

// Serve takes connections from the listener, which it closes, until ctx ends. It returns when every stream has ended.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: requestLimit,
		IdleTimeout:       idleLimit,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err := server.Serve(tls.NewListener(listener, s.tlsConfig()))
	s.streams.close()
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve access to virtual machines on %s: %w", listener.Addr(), err)
}

func (s *Server) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return loadTLS(s.TLSDir)
		},
	}
}

func loadTLS(dir string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		return nil, fmt.Errorf("load the agent's certificate: %w", err)
	}
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("load the agents' certificate authority: %w", err)
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s holds no certificate", filepath.Join(dir, "ca.crt"))
	}
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		NextProtos:       []string{"http/1.1"}, // websockets
		Certificates:     []tls.Certificate{pair},
		ClientAuth:       tls.RequireAndVerifyClientCert,
		ClientCAs:        clients,
		VerifyConnection: onlyController,
	}, nil
}

// onlyController refuses the cluster's other certificate holders: an agent may not open the consoles of another node.
func onlyController(state tls.ConnectionState) error {
	if name := state.PeerCertificates[0].Subject.CommonName; name != ControllerName {
		return fmt.Errorf("%q may not use this server, only %q may", name, ControllerName)
	}
	return nil
}
