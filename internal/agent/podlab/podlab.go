// Package podlab builds what tests of the node agent need on one machine: network namespaces that play a pod, a guest and a
// client. The namespaces are held by descriptors of the test process only, so that nothing survives it, however it ends.
// It is imported by tests alone.
package podlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/netns"
	"patchbay/internal/agent/podnet"
)

// MTU of the lab's pod network, in bytes.
const MTU = 1400

// Addresses of the lab's pod network.
var (
	PodV4     = netip.MustParsePrefix("10.128.0.5/23")
	PodV6     = netip.MustParsePrefix("fd00:10:128::5/64")
	ClientV4  = netip.MustParsePrefix("10.128.0.9/23")
	ClientV6  = netip.MustParsePrefix("fd00:10:128::9/64")
	GatewayV4 = netip.MustParseAddr("10.128.0.1")
	GatewayV6 = netip.MustParseAddr("fd00:10:128::1")
)

var podMAC = net.HardwareAddr{0x0a, 0x58, 10, 128, 0, 5}

// Netns is a network namespace that lives as long as the test.
type Netns struct {
	Path string // accepted by setns in any process of the machine, while the test runs
	t    testing.TB
}

// NewNetns makes a namespace with its loopback up.
func NewNetns(t testing.TB) *Netns {
	t.Helper()
	made := make(chan *os.File, 1)
	go func() {
		// Never unlocked: the thread is in the new namespace and must end with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- nil
			return
		}
		f, _ := os.Open("/proc/thread-self/ns/net")
		made <- f
	}()
	f := <-made
	if f == nil {
		t.Fatal("cannot make a network namespace; run the tests as root")
	}
	t.Cleanup(func() { f.Close() })
	n := &Netns{Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), t: t}
	n.Do(func() error {
		// Duplicate address detection would only make the first second of each test deaf.
		for _, scope := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+scope+"/accept_dad", []byte("0"), 0o644); err != nil {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return n
}

// Do runs f on a thread that is in the namespace.
func (n *Netns) Do(f func() error) {
	n.t.Helper()
	if err := n.Try(f); err != nil {
		n.t.Fatal(err)
	}
}

// Try is Do for an f whose error is expected.
func (n *Netns) Try(f func() error) error {
	return netns.Do(n.Path, f)
}

// Run runs a command in the namespace and returns what it printed.
func (n *Netns) Run(ctx context.Context, name string, args ...string) (string, error) {
	var out []byte
	err := n.Try(func() (err error) {
		out, err = exec.CommandContext(ctx, name, args...).CombinedOutput()
		return err
	})
	return string(out), err
}

// Dial connects from the namespace.
func (n *Netns) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := n.Try(func() (err error) {
		conn, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Lab is a pod and a client on one link.
type Lab struct {
	Pod, Client *Netns
	t           testing.TB
}

// New makes a pod whose eth0 has the given addresses, and a client beside it. As with userspace OVS, neither end of the link
// may leave checksums to the other.
func New(t testing.TB, podIPs ...netip.Prefix) *Lab {
	t.Helper()
	lab := &Lab{Pod: NewNetns(t), Client: NewNetns(t), t: t}
	lab.Client.Do(func() error {
		pod, err := os.Open(lab.Pod.Path)
		if err != nil {
			return err
		}
		defer pod.Close()
		veth := netlink.NewLinkAttrs()
		veth.Name, veth.MTU = "eth0", MTU
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: veth, PeerName: "eth0", PeerHardwareAddr: podMAC, PeerNamespace: netlink.NsFd(pod.Fd())})
	})
	lab.Client.setUp("eth0", ClientV4, ClientV6)
	lab.Pod.setUp("eth0", podIPs...)
	return lab
}

// Record is what the CNI server would have written about the pod.
func (l *Lab) Record(podIPs ...netip.Prefix) podnet.Pod {
	return podnet.Pod{
		UID: "2f1c0b0e-0000-4000-8000-000000000001", Namespace: "default", Name: "virt-launcher-vm-1", Netns: l.Pod.Path,
		Interfaces: []podnet.Interface{{
			Name: "eth0", MAC: podMAC, MTU: MTU, IPs: podIPs, Gateways: []netip.Addr{GatewayV4, GatewayV6},
		}},
	}
}

func (n *Netns) setUp(device string, ips ...netip.Prefix) {
	n.t.Helper()
	n.Do(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		if out, err := exec.Command("ethtool", "-K", device, "tx", "off").CombinedOutput(); err != nil {
			return fmt.Errorf("ethtool: %s: %w", out, err)
		}
		if err := netlink.LinkSetMTU(link, MTU); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		for _, ip := range ips {
			if err := AddAddr(link, ip); err != nil {
				return err
			}
		}
		return nil
	})
}

// AddAddr gives an address to a link of the current namespace; it is usable at once.
func AddAddr(link netlink.Link, ip netip.Prefix) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.Addr().AsSlice(), Mask: net.CIDRMask(ip.Bits(), ip.Addr().BitLen())}}
	if ip.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return netlink.AddrReplace(link, addr)
}
