package chapter9

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"patchbay/test/local"
)

// detour is a way to the API server that counts what goes through it.
type detour struct {
	server string // for a kubeconfig
	passed atomic.Int64
}

func newDetour(t *testing.T) *detour {
	t.Helper()
	target, err := url.Parse(cluster.Config.Host)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	d := &detour{server: "https://" + listener.Addr().String()}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go d.join(conn, target.Host)
		}
	}()
	return d
}

func (d *detour) join(from net.Conn, to string) {
	defer from.Close()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		d.copy(server, from)
		server.Close()
	}()
	d.copy(from, server)
}

func (d *detour) copy(to io.Writer, from io.Reader) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		d.passed.Add(int64(n))
		if err != nil {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// elsewhere is the user with another kubeconfig.
func elsewhere(t *testing.T, user *local.Client, name, before, after string) *local.Client {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(user.Home, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), before, after, 1)
	if changed == string(text) {
		t.Fatalf("the kubeconfig has no %q", before)
	}
	file := filepath.Join(user.Home, name)
	if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	return user.With("KUBECONFIG=" + file)
}

// checkThroughServer: SSH.0-C2 and the rights of SSH.4-C1.
func checkThroughServer(t *testing.T, user *local.Client, ns, key string) {
	t.Run("SSH.0-C2 virtctl ssh and port-forward go through the API server", func(t *testing.T) {
		const size = 1 << 20
		d := newDetour(t)
		around := elsewhere(t, user, "kubeconfig-detour", "server: "+cluster.Config.Host, "server: "+d.server)
		out, err := sshTo(t.Context(), around, ns, key, "cloud-user@vm/example-vm", fmt.Sprintf("head -c %d /dev/urandom | base64 -w0", size*3/4))
		if err != nil || len(out) != size || d.passed.Load() < size {
			t.Errorf("%d bytes arrived, %d passed the API server's address, %v", len(out), d.passed.Load(), err)
		}
		before := d.passed.Load()
		if err := tunnelled(t.Context(), around, "port-forward", "--stdio=true", "vm/example-vm/"+ns, "22"); err != nil || d.passed.Load() == before {
			t.Errorf("%d bytes passed the API server's address, %v", d.passed.Load()-before, err)
		}
	})
	t.Run("SSH.4-C1 the client has rights in the cluster", func(t *testing.T) {
		stranger := elsewhere(t, user, "kubeconfig-stranger", "\n  user:\n", "\n  user:\n    as: system:serviceaccount:"+ns+":stranger\n")
		out, err := sshTo(t.Context(), stranger, ns, key, "cloud-user@vm/example-vm", "true")
		if err == nil || !strings.Contains(err.Error(), "forbidden") {
			t.Errorf("a stranger: %s", local.Failed(out, err))
		}
	})
}
