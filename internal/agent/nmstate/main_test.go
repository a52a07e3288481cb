package nmstate

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/ovs"
	"patchbay/internal/nmstate"
	"patchbay/test/sandbox"
)

// The tests run in a network namespace of their own, which is the node's, with a real Open vSwitch. victimVariable marks a
// process that is killed in the middle of a change.
const victimVariable = "PATCHBAY_NMSTATE_VICTIM"

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(victimVariable) != "" {
		os.Exit(runVictim())
	}
	os.Exit(runTests(m))
}

// lab is the node of all tests.
var lab *Node

var labDir string

func runTests(m *testing.M) int {
	err := sandbox.Enter()
	if err == nil {
		labDir, err = os.MkdirTemp("/tmp", "pbnm-")
	}
	if err == nil {
		defer os.RemoveAll(labDir)
		err = startSwitch()
	}
	if err == nil {
		lab, err = connect()
	}
	if err == nil {
		err = run("ip", "link", "set", "lo", "up")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the lab:", err)
		return 1
	}
	return m.Run()
}

func startSwitch() error {
	path := func(name string) string { return filepath.Join(labDir, name) }
	if err := run("ovsdb-tool", "create", path("conf.db"), "/usr/share/openvswitch/vswitch.ovsschema"); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"ovsdb-server", "--remote=punix:" + path("db.sock"), "--unixctl=" + path("ovsdb.ctl"), path("conf.db")},
		{"ovs-vswitchd", "--unixctl=" + path("vswitchd.ctl"), "unix:" + path("db.sock")},
	} {
		cmd := exec.Command(args[0], append(args[1:], "--no-chdir", "-vconsole:off", "-vsyslog:off", "--log-file="+path(args[0]+".log"))...)
		cmd.Env = []string{"OVS_RUNDIR=" + labDir, "OVS_DBDIR=" + labDir, "OVS_LOGDIR=" + labDir, "PATH=" + os.Getenv("PATH")}
		if err := cmd.Start(); err != nil {
			return err
		}
		if args[0] == "ovsdb-server" {
			if err := eventually(func() error { _, err := os.Stat(path("db.sock")); return err }); err != nil {
				return err
			}
			err := run("ovs-vsctl", "--db=unix:"+path("db.sock"), "--no-wait", "init", "--", "set", "open", ".",
				"external_ids:system-id=node-1", "external_ids:ovn-bridge-datapath-type=netdev", "external_ids:ovn-bridge-mappings=physnet:br-ex")
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// connect gives a node of this namespace.
func connect() (*Node, error) {
	log := slog.New(slog.DiscardHandler)
	if testing.Testing() && testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client, err := ovs.Connect(ctx, "unix:"+filepath.Join(labDir, "db.sock"), log)
	if err != nil {
		return nil, err
	}
	if _, err := client.EnsureIntegrationBridge(ctx); err != nil {
		return nil, err
	}
	guard, err := link.NewShield()
	return &Node{Name: "node-1", Switch: client, Guard: guard, Log: log}, err
}

func run(program string, args ...string) error {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	return nil
}

func eventually(check func() error) error {
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return err
		}
	}
}

// cards gives the node cards whose other ends are in another namespace, whose path it returns, and takes them away at the end.
func cards(t *testing.T, names ...string) string {
	t.Helper()
	holder := exec.Command("unshare", "--net", "sleep", "1000")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
		for _, name := range names {
			_ = run("ip", "link", "del", name)
		}
	})
	ns := fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	err = eventually(func() error {
		if theirs, err := os.Readlink(ns); err != nil || theirs == own {
			return fmt.Errorf("no namespace yet (%v)", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		must(t, "ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", fmt.Sprint(holder.Process.Pid))
		must(t, "ip", "link", "set", name, "up")
		must(t, "nsenter", "--net="+ns, "ip", "link", "set", name, "up")
	}
	return ns
}

func must(t *testing.T, program string, args ...string) {
	t.Helper()
	if err := run(program, args...); err != nil {
		t.Fatal(err)
	}
}

func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", program, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// vsctl asks the switch.
func vsctl(t *testing.T, args ...string) string {
	t.Helper()
	return output(t, "ovs-vsctl", append([]string{"--db=unix:" + filepath.Join(labDir, "db.sock")}, args...)...)
}

func parse(t *testing.T, document string) nmstate.State {
	t.Helper()
	s, err := nmstate.Parse([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	return s.WithDefaults()
}

// enactor has no probes but those given, and little patience.
func enactor(t *testing.T, probes ...Probe) *Enactor {
	t.Helper()
	return &Enactor{Node: lab, File: filepath.Join(t.TempDir(), "checkpoint"), Probes: probes, ProbeTime: 300 * time.Millisecond, Delay: 20 * time.Millisecond}
}

func enact(t *testing.T, document string) {
	t.Helper()
	if err := enactor(t).Enact(t.Context(), "test", 1, parse(t, document)); err != nil {
		t.Fatal(err)
	}
	if done, err := enactor(t).Satisfied(parse(t, document)); !done || err != nil {
		t.Errorf("the document is not satisfied after it was enacted: %v", err)
	}
}

func exists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}
