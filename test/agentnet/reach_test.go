package agentnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"patchbay/internal/agent/netns"
	"patchbay/internal/agent/reach"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// The agent connects to pods and guests of two tenants that have the same addresses, and to nobody else by it.
func TestReachTenants(t *testing.T) {
	b := newBench(t)
	management := netip.MustParsePrefix("10.20.0.2/16")
	r := reach.New(reach.Config{Ports: lab.ovs, Guard: lab.guard, Log: lab.log, Find: func(_ context.Context, attachment string) (reach.Network, error) {
		if attachment == "red/none" {
			return reach.Network{Name: "none"}, nil
		}
		return reach.Network{Name: attachment, Addresses: []netip.Prefix{management}, MTU: 1300}, nil
	}})
	t.Cleanup(func() {
		if err := errors.Join(r.Recover(context.Background()), r.Close()); err != nil {
			t.Error(err)
		}
	})
	for _, tenant := range []string{"one", "two"} {
		newSwitch(t, tenant)
		port := topology.AccessPort(tenant)
		if err := lab.nbctl("lsp-add", tenant, port, "--", "lsp-set-type", port, "localport",
			"--", "lsp-set-addresses", port, podnetworks.MAC(management.Addr()).String()+" "+management.Addr().String()); err != nil {
			t.Fatal(err)
		}
		p := newPod(t, b.kube)
		b.kube.give(t, p, "red/"+tenant, tenant, podnetworks.Network{Role: podnetworks.Primary, Interface: podnetworks.PrimaryInterface, IPs: ips("10.20.0.5/16")})
		b.add(t, p)
		greet(t, p, "10.20.0.5:22", tenant)
	}
	for _, tenant := range []string{"one", "two", "one"} {
		conn, err := r.Dial(t.Context(), tenant, tenant, "tcp", netip.MustParseAddrPort("10.20.0.5:22"))
		if err != nil {
			t.Fatal(err)
		}
		greeting := make([]byte, 10)
		n, _ := conn.Read(greeting)
		conn.Close()
		if string(greeting[:n]) != tenant {
			t.Errorf("tenant %s answered with %q", tenant, greeting[:n])
		}
	}
	if _, err := r.Dial(t.Context(), "one", "one", "tcp", netip.MustParseAddrPort("10.20.0.5:23")); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a closed port: %v", err)
	}
	if _, err := r.Dial(t.Context(), "none", "red/none", "tcp", netip.MustParseAddrPort("10.20.0.5:22")); err == nil || !strings.Contains(err.Error(), "no address on it") {
		t.Errorf("a network without addresses of nodes: %v", err)
	}
	t.Run("a new agent begins anew", func(t *testing.T) {
		if err := r.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		if owned := lab.ovs.Owned("reach/"); len(owned) > 0 {
			t.Errorf("left over: %v", owned)
		}
	})
}

// greet greets whoever connects in the pod.
func greet(t *testing.T, p aPod, address, greeting string) {
	t.Helper()
	var listener net.Listener
	err := netns.Do(p.netns, func() (err error) {
		listener, err = net.Listen("tcp4", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, greeting)
			conn.Close()
		}
	}()
}
