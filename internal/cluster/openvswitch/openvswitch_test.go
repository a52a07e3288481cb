package openvswitch

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// database runs a database server over a new file and returns its socket and its control socket.
func database(t *testing.T, schema string) (socket, control string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "x.db")
	for range 2 { // the second call finds the file
		if err := EnsureDatabase(t.Context(), file, schema); err != nil {
			t.Fatal(err)
		}
	}
	socket, control = filepath.Join(dir, "db.sock"), filepath.Join(dir, "db.ctl")
	server := exec.Command("ovsdb-server", "-vconsole:off", "-vsyslog:off", "--unixctl="+control, "--remote=punix:"+socket, file)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGTERM)
		_ = server.Wait()
	})
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return socket, control
		}
		select {
		case <-ticker.C:
		case <-t.Context().Done():
			t.Fatal("the database server does not answer")
		}
	}
}

func TestChassis(t *testing.T) {
	socket, control := database(t, VSwitchSchema)
	c := Chassis{
		Database: "unix:" + socket, Name: "node-1", EncapIPs: []string{"172.30.0.11"}, Southbound: "ssl:172.30.0.1:6642",
		Key: "/pki/key", Certificate: "/pki/crt", Authority: "/pki/ca", Datapath: "netdev",
		Uplink: "eth0", Bridge: "br-phys", BridgeMAC: "0a:58:ac:1e:00:0b", MTU: 9000,
	}
	for range 2 {
		if err := EnsureChassis(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	get := func(args ...string) string {
		out, err := run(t.Context(), "ovs-vsctl", append([]string{"--no-wait", "--db=" + c.Database}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	for _, q := range []struct{ query, want string }{
		{"list-br", "br-int\nbr-phys"},
		{"list-ports br-phys", "eth0"},
		{"get bridge br-int fail_mode", "secure"},
		{"get bridge br-phys datapath_type", "netdev"},
		{"get bridge br-phys other_config:hwaddr", `"0a:58:ac:1e:00:0b"`},
		{"get interface br-phys mtu_request", "9000"},
		{"get open . external_ids:system-id", "node-1"},
		{"get open . external_ids:ovn-remote", `"ssl:172.30.0.1:6642"`},
		{"get open . external_ids:ovn-encap-ip", `"172.30.0.11"`},
		{"get-ssl", "Private key: /pki/key\nCertificate: /pki/crt\nCA Certificate: /pki/ca\nBootstrap: false"},
	} {
		if diff := cmp.Diff(q.want, get(strings.Fields(q.query)...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", q.query, diff)
		}
	}
	if kind, err := ReadDatapath(t.Context(), c.Database); kind != "netdev" || err != nil {
		t.Errorf("datapath is %q, %v", kind, err)
	}
	if version, err := Control(t.Context(), control, "version"); !strings.Contains(version, "ovsdb-server") || err != nil {
		t.Errorf("version is %q, %v", version, err)
	}
	if _, err := Control(t.Context(), control, "no-such-command"); err == nil || !strings.Contains(err.Error(), "not a valid command") {
		t.Errorf("an unknown command gives %v", err)
	}
}

func TestTheDatapathIsUnknownWithoutChassis(t *testing.T) {
	socket, _ := database(t, VSwitchSchema)
	if _, err := run(t.Context(), "ovs-vsctl", "--no-wait", "--db=unix:"+socket, "init"); err != nil {
		t.Fatal(err)
	}
	if kind, err := ReadDatapath(t.Context(), "unix:"+socket); kind != "" || err != nil {
		t.Errorf("datapath is %q, %v", kind, err)
	}
}

func TestAnInterruptedCreationIsRepeated(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(file+".new", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := EnsureDatabase(t.Context(), file, NBSchema); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t.Context(), "ovsdb-tool", "db-name", file); strings.TrimSpace(out) != "OVN_Northbound" || err != nil {
		t.Errorf("the database is %q, %v", out, err)
	}
}

func TestAnAnswerIsNotAwaitedForEver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "silent.ctl")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Control(ctx, path, "version"); err == nil {
		t.Error("a silent daemon gave an answer")
	}
}
