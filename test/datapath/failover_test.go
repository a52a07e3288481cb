package datapath

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"patchbay/internal/network/policy"
	"patchbay/internal/topology"
)

// TestGatewayMovesWhenItsNodeDies: the other node takes over once the group names it. The lab's network between the nodes is
// cut here, so the dead node cannot take part in anything.
func TestGatewayMovesWhenItsNodeDies(t *testing.T) {
	echoServer(t, "", netip.AddrPortFrom(fabric4, 7779), "fabric")
	red := lab.tenants["red"]
	from, dead, other := red.pods[1].netns, lab.nodes[0], lab.nodes[1]
	before := red.gateway
	t.Cleanup(func() {
		if err := run("ip link set " + dead.Name + " up"); err != nil {
			t.Error(err)
		}
		red.gateway = before
		red.apply()
		awaitReach(t, from, time.Minute)
		if err := lab.settle(); err != nil {
			t.Error(err)
		}
	})
	if took := awaitReach(t, from, 5*time.Second); took > time.Second {
		t.Logf("outside reached only after %s", took)
	}
	if err := run("ip link set " + dead.Name + " down"); err != nil {
		t.Fatal(err)
	}
	if n := ping(t, from, fabric4.String()); n != 0 {
		t.Fatalf("%d of 4 answered through a dead node", n)
	}
	red.gateway.Chassis = []string{other.Name}
	began := time.Now()
	red.apply()
	awaitReach(t, from, time.Minute)
	t.Logf("traffic went on %s after the group named another node", time.Since(began).Round(time.Millisecond))
	_, seen, err := ask(from, "tcp", netip.AddrPortFrom(fabric4, 7779))
	if err != nil || seen != other.fabric4 {
		t.Errorf("after the fail-over the outside sees %s, error %v, want %s", seen, err, other.fabric4)
	}
}

// awaitReach sends datagrams to the outside until one comes back, and says how long that took.
func awaitReach(t *testing.T, from string, patience time.Duration) time.Duration {
	t.Helper()
	conn, err := dialFrom(from, "udp", netip.AddrPortFrom(fabric4, 7779), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buffer := make([]byte, 100)
	for began := time.Now(); ; {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Millisecond))
		_, _ = conn.Write([]byte("!"))
		if _, err := conn.Read(buffer); err == nil {
			return time.Since(began)
		}
		if time.Since(began) > patience {
			t.Fatalf("%s does not reach the outside for %s", from, patience)
		}
	}
}

// TestConnectionSurvivesTheMoveOfItsMachine: the gateway stays where it is and knows the connection.
func TestConnectionSurvivesTheMoveOfItsMachine(t *testing.T) {
	echoServer(t, "", netip.AddrPortFrom(fabric4, 7780), "fabric")
	blue := lab.tenants["blue"]
	for _, there := range []string{"node-1", "node-2"} { // away from the gateway and to it
		t.Run("to "+there, func(t *testing.T) {
			name, here := "moves-to-"+there[len(there)-1:], map[string]string{"node-1": "node-2", "node-2": "node-1"}[there]
			if there == "node-2" { // the other way without any, so that nothing tracks its connection
				p := newPolicing(t)
				p.SetNetwork(policy.Network{Name: "blue", Services: true, Addresses: true})
				p.member("blue", topology.NICPort("blue", name, "default"), "blue", name)
				p.plain("blue", "podSelector: {}\npolicyTypes: [Ingress, Egress]\negress: [{}]")
			}
			if err := blue.startPod(name, here, 20); err != nil {
				t.Fatal(err)
			}
			pod := blue.pods[len(blue.pods)-1]
			t.Cleanup(func() {
				blue.pods = blue.pods[:len(blue.pods)-1]
				lab.store.Delete("nic/" + name)
				if err := unplug(name, there); err != nil {
					t.Error(err)
				}
				if err := run("ip netns del " + name); err != nil {
					t.Error(err)
				}
			})
			conn, err := dialFrom(name, "tcp", netip.AddrPortFrom(fabric4, 7780), 3*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil { // the greeting
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			talked := make(chan error, 1)
			go func() {
				longest, err := talk(ctx, conn)
				t.Logf("longest silence %s", longest.Round(time.Millisecond))
				talked <- err
			}()
			if err := unplug(name, here); err != nil {
				t.Error(err)
			}
			pod.Node = there
			lab.store.Set("nic/"+name, blue.port(pod, there))
			if err := lab.connect(name, there, topology.NICPort(blue.name(), name, "default"), "", pod.Network); err != nil {
				t.Error(err)
			}
			// The connection goes on for as long as these take.
			for range 3 {
				ping(t, name, fabric4.String())
			}
			cancel()
			if err := <-talked; err != nil {
				t.Errorf("the connection broke: %v", err)
			}
		})
	}
}

// unplug takes a pod's interface off its node.
func unplug(name, node string) error {
	return run(fmt.Sprintf("ovs-vsctl --timeout=20 --db=unix:%s del-port br-int v-%s; ip -n %s link del v-%s", path(node, "db.sock"), name, node, name))
}
