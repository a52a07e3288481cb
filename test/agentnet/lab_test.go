package agentnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/netns"
	"patchbay/internal/agent/ovs"
)

// nodeName is the node's name in Kubernetes and in OVN.
const nodeName = "node-1"

// Addresses of the lab. The node's uplink is not in Open vSwitch: what the tests are about is the pods' side.
var (
	nodeIP    = netip.MustParsePrefix("172.30.0.11/24")
	nodeIP6   = netip.MustParsePrefix("fd00:172:30::b/64")
	outsideIP = netip.MustParsePrefix("172.30.0.1/24")
	outside6  = netip.MustParsePrefix("fd00:172:30::1/64")
	gateway   = netip.MustParseAddr("10.128.0.1")
	gateway6  = netip.MustParseAddr("fd00:10:128::1")
)

// theLab is one node with Open vSwitch, OVN with its databases, and an outside host.
type theLab struct {
	dir     string
	ovs     *ovs.Client
	guard   link.Guard
	outside string // namespace of the outside host
	log     *slog.Logger
	daemons map[string]*exec.Cmd
}

var lab *theLab

func startLab(dir string) (*theLab, error) {
	l := &theLab{dir: dir, log: slog.New(slog.DiscardHandler), daemons: map[string]*exec.Cmd{}}
	if testing.Verbose() {
		l.log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	for _, step := range []func() error{l.startUplink, l.startOVS, l.startOVN, l.connect, l.makeTopology} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// startUplink gives the node an address and a neighbour outside.
func (l *theLab) startUplink() error {
	var err error
	if l.outside, err = newNetns(); err != nil {
		return err
	}
	if err := up("lo"); err != nil {
		return err
	}
	target, err := netns.Open(l.outside)
	if err != nil {
		return err
	}
	defer target.Close()
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "uplink"
	pair := netlink.NewVeth(attributes)
	pair.PeerName, pair.PeerNamespace = "eth0", netlink.NsFd(int(target.Fd()))
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	if err := configure("uplink", nodeIP, nodeIP6); err != nil {
		return err
	}
	return netns.In(target, func() error { return configure("eth0", outsideIP, outside6) })
}

func configure(device string, ips ...netip.Prefix) error {
	if err := link.Set(link.ForDevice(device, link.Setting{Key: "ipv6/accept_dad", Value: "0"})...); err != nil {
		return err
	}
	d, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	for _, ip := range ips {
		address, err := netlink.ParseAddr(ip.String())
		if err != nil {
			return err
		}
		if ip.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(d, address); err != nil {
			return err
		}
	}
	return up(device)
}

func up(device string) error {
	d, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(d)
}

func setMAC(device string, mac net.HardwareAddr) error {
	d, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	return netlink.LinkSetHardwareAddr(d, mac)
}

func (l *theLab) path(name string) string { return filepath.Join(l.dir, name) }

// startOVS starts the switch as the local cluster does.
func (l *theLab) startOVS() error {
	if err := run("ovsdb-tool", "create", l.path("conf.db"), "/usr/share/openvswitch/vswitch.ovsschema"); err != nil {
		return err
	}
	if err := l.daemon("ovsdb", "ovsdb-server", "--remote=punix:"+l.path("db.sock"), "--unixctl="+l.path("ovsdb.ctl"), l.path("conf.db")); err != nil {
		return err
	}
	if err := l.await("db.sock"); err != nil {
		return err
	}
	err := run("ovs-vsctl", "--db=unix:"+l.path("db.sock"), "--no-wait", "init", "--", "set", "open", ".",
		"external_ids:system-id="+nodeName, "external_ids:ovn-remote=unix:"+l.path("sb.sock"), "external_ids:ovn-encap-type=geneve",
		"external_ids:ovn-encap-ip="+nodeIP.Addr().String(), "external_ids:ovn-bridge-datapath-type=netdev")
	if err != nil {
		return err
	}
	return l.startSwitch()
}

func (l *theLab) startSwitch() error {
	return l.daemon("vswitchd", "ovs-vswitchd", "--unixctl="+l.path("vswitchd.ctl"), "unix:"+l.path("db.sock"))
}

func (l *theLab) startOVN() error {
	for _, db := range []string{"nb", "sb"} {
		if err := run("ovsdb-tool", "create", l.path(db+".db"), "/usr/share/ovn/ovn-"+db+".ovsschema"); err != nil {
			return err
		}
		if err := l.daemon(db, "ovsdb-server", "--remote=punix:"+l.path(db+".sock"), "--unixctl="+l.path(db+".ctl"), l.path(db+".db")); err != nil {
			return err
		}
		if err := l.await(db + ".sock"); err != nil {
			return err
		}
	}
	if err := l.daemon("northd", "ovn-northd", "--unixctl="+l.path("northd.ctl"), "--ovnnb-db=unix:"+l.path("nb.sock"), "--ovnsb-db=unix:"+l.path("sb.sock")); err != nil {
		return err
	}
	return l.startController()
}

func (l *theLab) startController() error {
	return l.daemon("controller", "ovn-controller", "unix:"+l.path("db.sock"))
}

func (l *theLab) daemon(name, program string, args ...string) error {
	cmd := exec.Command(program, append(args, "--no-chdir", "-vconsole:off", "-vsyslog:off", "--log-file="+l.path(name+".log"))...)
	for _, variable := range []string{"OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVN_RUNDIR", "OVN_DBDIR", "OVN_LOGDIR"} {
		cmd.Env = append(cmd.Env, variable+"="+l.dir)
	}
	l.daemons[name] = cmd
	return cmd.Start()
}

// kill ends a daemon as the kernel does when memory is short.
func (l *theLab) kill(t *testing.T, name string) {
	t.Helper()
	if err := l.daemons[name].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = l.daemons[name].Wait()
}

func (l *theLab) await(socket string) error {
	return eventually(func() error { _, err := os.Stat(l.path(socket)); return err })
}

func (l *theLab) connect() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var err error
	if l.ovs, err = ovs.Connect(ctx, "unix:"+l.path("db.sock"), l.log); err != nil {
		return err
	}
	datapath, err := l.ovs.EnsureIntegrationBridge(ctx)
	if err != nil {
		return err
	}
	if datapath != ovs.Userspace {
		return fmt.Errorf("the datapath is %s, want the one that was asked for", datapath)
	}
	shield, err := link.NewShield()
	l.guard = link.Workloads{Guard: shield, Refused: func(_ context.Context, device string, err error) {
		panic(fmt.Sprintf("%s: %v", device, err)) // every test here would show less than it says
	}}
	return err
}

// makeTopology is the default network of one node, as the network controller makes it, and a load balancer.
func (l *theLab) makeTopology() error {
	return l.nbctl("lr-add", "cluster_router",
		"--", "lrp-add", "cluster_router", "rtos-node-1", "0a:58:0a:80:00:01", "10.128.0.1/23", "fd00:10:128::1/64",
		"--", "lrp-set-gateway-chassis", "rtos-node-1", nodeName, "1",
		"--", "lr-route-add", "cluster_router", "0.0.0.0/0", "10.128.0.2",
		"--", "lr-route-add", "cluster_router", "::/0", "fd00:10:128::2",
		"--", "ls-add", nodeName,
		"--", "lsp-add", nodeName, "stor-node-1",
		"--", "lsp-set-type", "stor-node-1", "router", "--", "lsp-set-addresses", "stor-node-1", "router",
		"--", "lsp-set-options", "stor-node-1", "router-port=rtos-node-1",
		"--", "lsp-add", nodeName, "k8s-node-1",
		"--", "lsp-set-addresses", "k8s-node-1", "0a:58:0a:80:00:02 10.128.0.2 fd00:10:128::2",
		"--", "lsp-set-options", "k8s-node-1", "requested-chassis="+nodeName)
}

func (l *theLab) nbctl(args ...string) error {
	return run("ovn-nbctl", append([]string{"--db=unix:" + l.path("nb.sock")}, args...)...)
}

func run(program string, args ...string) error {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	return nil
}

// newNetns makes a namespace that lives as long as this process and returns its path.
func newNetns() (string, error) {
	made := make(chan error)
	var file *os.File
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- err
			return
		}
		var err error
		file, err = os.Open(netns.Own)
		if err == nil {
			err = up("lo")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return "", err
	}
	kept = append(kept, file)
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd()), nil
}

// kept holds namespaces open.
var kept []*os.File

// eventually waits for what no notification tells of. It gives up after 20 s.
func eventually(check func() error) error {
	deadline := time.After(20 * time.Second)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-deadline:
			return errors.Join(errors.New("gave up waiting"), err)
		}
	}
}
