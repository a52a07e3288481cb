// Package apiserver is a test fixture: the real etcd and kube-apiserver of the embedded engine, in a network namespace of
// their own that vanishes with the test process. No controller runs, so objects stay as they are written.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// Address is where the API server listens inside its namespace; it refuses to advertise a loopback address.
const Address = "172.30.0.1"

const (
	adminToken = "patchbay-test-admin"
	userToken  = "patchbay-test-user"
)

// Server is a running control plane.
type Server struct {
	// Config reaches the API server as a cluster administrator.
	Config *rest.Config
	// Kubeconfig is a file for Kubectl, which must run in the namespace.
	Kubeconfig string
	// CA issued every certificate; handlers that the API server calls get theirs from it.
	CA *Authority

	dir   string
	space *namespace
	procs []*process
}

// Run starts a server for all tests of a package, stores it in *into and runs the tests; call it from TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(apiserver.Run(m, &server)) }
func Run(m *testing.M, into **Server) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	s, err := Start(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer s.Stop()
	*into = s
	return m.Run()
}

// Start returns when the API server is ready.
func Start(ctx context.Context) (*Server, error) {
	dir, err := os.MkdirTemp("", "pbapi-")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir}
	if err := s.start(ctx); err != nil {
		s.Stop()
		return nil, fmt.Errorf("start the test API server: %w", err)
	}
	return s, nil
}

func (s *Server) start(ctx context.Context) (err error) {
	engine, err := find("patchbay-kube")
	if err != nil {
		return err
	}
	if s.space, err = newNamespace(); err != nil {
		return err
	}
	if s.CA, err = NewAuthority(); err != nil {
		return err
	}
	if err := s.writeFiles(); err != nil {
		return err
	}
	if err := s.run(engine, "etcd", s.etcdArgs()); err != nil {
		return err
	}
	if err := s.run(engine, "kube-apiserver", s.apiserverArgs()); err != nil {
		return err
	}
	s.Config = s.UserConfig(adminToken)
	return s.waitReady(ctx)
}

// UserConfig is a client configuration with a bearer token.
func (s *Server) UserConfig(token string) *rest.Config {
	return &rest.Config{
		Host:            "https://" + Address + ":6443",
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{CAData: s.CA.PEM},
		Dial:            s.Dial,
		QPS:             -1,
	}
}

// Plain reaches the API server as a user without any right but what bindings give to "plain" or the group "plain-users".
func (s *Server) Plain() *rest.Config { return s.UserConfig(userToken) }

// As reaches the API server as any user, with the rights that roles give that name.
func (s *Server) As(user string) *rest.Config {
	config := s.UserConfig(adminToken)
	config.Impersonate.UserName = user
	return config
}

// Dial connects from inside the namespace.
func (s *Server) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	doErr := s.space.do(func() { conn, err = (&net.Dialer{}).DialContext(ctx, network, address) })
	return conn, errors.Join(doErr, err)
}

// Listen opens a listener inside the namespace, where the API server's webhooks and aggregated APIs reach it.
func (s *Server) Listen(address string) (l net.Listener, err error) {
	doErr := s.space.do(func() { l, err = net.Listen("tcp", address) })
	return l, errors.Join(doErr, err)
}

// Kubectl runs kubectl in the namespace and returns its standard output and standard error.
func (s *Server) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (stdout, stderr string, err error) {
	return s.Program(ctx, stdin, "patchbay-kube", append([]string{"kubectl", "--cache-dir", filepath.Join(s.dir, "cache")}, args...)...)
}

// Program runs a client of bin/ in the namespace, with a kubeconfig of the cluster's administrator in its environment.
func (s *Server) Program(ctx context.Context, stdin io.Reader, name string, args ...string) (stdout, stderr string, err error) {
	program, err := find(name)
	if err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.Kubeconfig)
	return s.space.output(cmd, stdin)
}

// Stop ends the processes and removes every trace.
func (s *Server) Stop() {
	for i := len(s.procs) - 1; i >= 0; i-- {
		s.procs[i].stop()
	}
	if s.space != nil {
		s.space.close()
	}
	os.RemoveAll(s.dir)
}

func (s *Server) waitReady(ctx context.Context) error {
	client, err := rest.HTTPClientFor(s.Config)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		if ready(ctx, client, s.Config.Host+"/readyz") {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it did not become ready: %w\n%s", ctx.Err(), s.logs())
		case <-s.procs[0].done:
			return fmt.Errorf("etcd ended:\n%s", s.logs())
		case <-s.procs[1].done:
			return fmt.Errorf("kube-apiserver ended:\n%s", s.logs())
		case <-poll.C:
		}
	}
}

func ready(ctx context.Context, client *http.Client, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// find looks for a program in bin/ upwards from the test's directory.
func find(name string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		candidate := filepath.Join(dir, "bin", name)
		if _, err := os.Stat(candidate); err == nil {
			return candidate, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no bin/%s in this or any parent directory; build it with `make bin/%s`", name, name)
		}
		dir = parent
	}
}
