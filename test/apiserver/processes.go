package apiserver

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// logTail is how much of a process's output a failure shows, in bytes.
const logTail = 4000

type process struct {
	name, log string
	cmd       *exec.Cmd
	done      chan struct{}
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) run(engine, name string, args []string) error {
	p := &process{name: name, log: s.path(name + ".log"), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return err
	}
	defer out.Close()
	p.cmd = exec.Command(engine, append([]string{name}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := s.space.start(p.cmd); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // the log says why it ended
		close(p.done)
	}()
	s.procs = append(s.procs, p)
	return nil
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL) // nothing is worth an orderly shutdown
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
	}
}

func (s *Server) logs() string {
	var all strings.Builder
	for _, p := range s.procs {
		text, _ := os.ReadFile(p.log)
		fmt.Fprintf(&all, "--- %s\n%s\n", p.name, text[max(0, len(text)-logTail):])
	}
	return all.String()
}

func (s *Server) etcdArgs() []string {
	return []string{
		"--data-dir", s.path("etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "default=http://127.0.0.1:2380",
	}
}

func (s *Server) apiserverArgs() []string {
	return []string{
		"--etcd-servers", "http://127.0.0.1:2379",
		"--advertise-address", Address, "--bind-address", Address, "--secure-port", "6443",
		"--tls-cert-file", s.path("server.crt"), "--tls-private-key-file", s.path("server.key"),
		"--service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112",
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", s.path("server.key"), "--service-account-signing-key-file", s.path("server.key"),
		"--authorization-mode", "RBAC", "--token-auth-file", s.path("tokens.csv"),
		"--client-ca-file", s.path("ca.crt"),
		"--requestheader-client-ca-file", s.path("front.crt"), "--requestheader-allowed-names", "front-proxy-client",
		"--requestheader-username-headers", "X-Remote-User", "--requestheader-group-headers", "X-Remote-Group",
		"--requestheader-extra-headers-prefix", "X-Remote-Extra-",
		"--proxy-client-cert-file", s.path("proxy.crt"), "--proxy-client-key-file", s.path("proxy.key"),
		"--enable-aggregator-routing=true", "--profiling=false",
	}
}

// writeFiles makes the certificates, tokens and kubeconfig that the processes read.
func (s *Server) writeFiles() error {
	front, err := NewAuthority()
	if err != nil {
		return err
	}
	server, err := s.CA.Issue("kube-apiserver", nil, Address)
	if err != nil {
		return err
	}
	proxy, err := front.Issue("front-proxy-client", nil)
	if err != nil {
		return err
	}
	tokens := adminToken + ",admin,admin,system:masters\n" + userToken + ",plain,plain,plain-users\n"
	for name, body := range map[string][]byte{
		"ca.crt": s.CA.PEM, "front.crt": front.PEM, "tokens.csv": []byte(tokens),
		"server.crt": server.Certificate, "server.key": server.Key, "proxy.crt": proxy.Certificate, "proxy.key": proxy.Key,
	} {
		if err := os.WriteFile(s.path(name), body, 0o600); err != nil {
			return err
		}
	}
	return s.writeKubeconfig()
}

func (s *Server) writeKubeconfig() error {
	config := api.NewConfig()
	config.Clusters["test"] = &api.Cluster{Server: "https://" + Address + ":6443", CertificateAuthorityData: s.CA.PEM}
	config.AuthInfos["admin"] = &api.AuthInfo{Token: adminToken}
	config.Contexts["test"] = &api.Context{Cluster: "test", AuthInfo: "admin"}
	config.CurrentContext = "test"
	s.Kubeconfig = s.path("kubeconfig")
	return clientcmd.WriteToFile(*config, s.Kubeconfig)
}
