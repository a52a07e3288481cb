package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"patchbay/internal/topology"
)

// serve hands the rows of a service to the store and takes them away with the test.
func serve(t *testing.T, s topology.Service) {
	t.Helper()
	s.Namespace = "default"
	owner := "service/default/" + s.Name
	lab.services[owner] = topology.ServiceRows(s, []string{"node-1", "node-2"})
	lab.store.Set(owner, lab.services[owner])
	if err := lab.settle(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		delete(lab.services, owner)
		lab.store.Delete(owner)
	})
}

var (
	vip4 = netip.MustParseAddr("10.96.1.1")
	vip6 = netip.MustParseAddr("fd00:10:96::11")
	vips = []netip.Addr{vip4, vip6}
)

// backends starts a server on each pod and returns them as endpoints, both families.
func backends(t *testing.T, port uint16, pods ...string) []topology.Endpoint {
	t.Helper()
	var endpoints []topology.Endpoint
	for _, name := range pods {
		lab.pods[name].each(func(_ string, ip netip.Addr) {
			at := netip.AddrPortFrom(ip, port)
			echoServer(t, name, at, name)
			endpoints = append(endpoints, topology.Endpoint{Address: at, Node: lab.pods[name].Node})
		})
	}
	return endpoints
}

// answers counts which server answers a number of connections.
func answers(t *testing.T, from, network string, to netip.AddrPort, times int) map[string]int {
	t.Helper()
	names := map[string]int{}
	for range times {
		name, _, err := ask(from, network, to)
		if err != nil {
			t.Errorf("%s from %s to %s: %v", network, from, to, err)
			break
		}
		names[name]++
	}
	return names
}

func TestServiceSpreadsConnections(t *testing.T) {
	endpoints := backends(t, 8080, "b1", "a2")
	serve(t, topology.Service{Name: "web", ClusterIPs: vips, Ports: []topology.ServicePort{
		{Protocol: "tcp", Port: 80, Endpoints: endpoints}, {Protocol: "udp", Port: 80, Endpoints: endpoints},
	}})
	for _, vip := range vips {
		for _, from := range []string{"a1", "b2", "node-1", "node-2"} {
			for _, network := range []string{"tcp", "udp"} {
				got := answers(t, from, network, netip.AddrPortFrom(vip, 80), 30)
				if got["b1"] == 0 || got["a2"] == 0 || got["b1"]+got["a2"] != 30 {
					t.Errorf("%s from %s to %s: answered by %v, want b1 and a2", network, from, vip, got)
				}
			}
		}
	}
}

func TestServiceReachesAPodThatAsksItself(t *testing.T) {
	serve(t, topology.Service{Name: "self", ClusterIPs: vips, Ports: []topology.ServicePort{{Protocol: "tcp", Port: 80, Endpoints: backends(t, 8080, "a1")}}})
	for _, vip := range vips {
		name, seen, err := ask("a1", "tcp", netip.AddrPortFrom(vip, 80))
		if err != nil || name != "a1" || (seen.String() != "169.254.169.5" && seen.String() != "fd69::5") {
			t.Errorf("%s: %q answered a client at %s, error %v", vip, name, seen, err)
		}
	}
}

func TestServiceOutsideTheOverlay(t *testing.T) {
	var endpoints []topology.Endpoint
	for _, at := range []netip.Addr{fabric4, fabric6} {
		echoServer(t, "", netip.AddrPortFrom(at, 6443), "api")
		endpoints = append(endpoints, topology.Endpoint{Address: netip.AddrPortFrom(at, 6443)})
	}
	serve(t, topology.Service{Name: "kubernetes", ClusterIPs: vips, Ports: []topology.ServicePort{{Protocol: "tcp", Port: 443, Endpoints: endpoints}}})
	for _, vip := range vips {
		for _, from := range []string{"a1", "a2"} {
			if got := answers(t, from, "tcp", netip.AddrPortFrom(vip, 443), 5); got["api"] != 5 {
				t.Errorf("from %s to %s: answered by %v, want the API server", from, vip, got)
			}
		}
	}
}

func TestServiceAffinity(t *testing.T) {
	serve(t, topology.Service{Name: "sticky", ClusterIPs: vips, Affinity: true, Ports: []topology.ServicePort{
		{Protocol: "tcp", Port: 80, Endpoints: backends(t, 8080, "b1", "a2", "b2")},
	}})
	for _, vip := range vips {
		for _, from := range []string{"a1", "node-1", "node-2"} {
			if got := answers(t, from, "tcp", netip.AddrPortFrom(vip, 80), 20); len(got) != 1 {
				t.Errorf("from %s to %s: one client was answered by %v", from, vip, got)
			}
		}
	}
}

func TestServiceWithoutEndpointsRefuses(t *testing.T) {
	serve(t, topology.Service{Name: "empty", ClusterIPs: vips, Ports: []topology.ServicePort{{Protocol: "tcp", Port: 80}, {Protocol: "udp", Port: 80}}})
	for _, vip := range vips {
		for _, from := range []string{"a1", "node-1"} {
			for _, network := range []string{"tcp", "udp"} {
				began := time.Now()
				_, _, err := ask(from, network, netip.AddrPortFrom(vip, 80))
				if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(began) > time.Second {
					t.Errorf("%s from %s to %s: error %v after %s, want refused at once", network, from, vip, err, time.Since(began))
				}
			}
		}
	}
}

func TestServiceOfTheNode(t *testing.T) {
	serve(t, topology.Service{Name: "local", ClusterIPs: vips, InternalLocal: true, Ports: []topology.ServicePort{{Protocol: "tcp", Port: 80, Endpoints: backends(t, 8080, "b1")}}})
	for _, vip := range vips {
		if got := answers(t, "a1", "tcp", netip.AddrPortFrom(vip, 80), 5); got["b1"] != 5 {
			t.Errorf("a1 to %s: answered by %v, want b1 of the same node", vip, got)
		}
		if _, _, err := ask("a2", "tcp", netip.AddrPortFrom(vip, 80)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a2 to %s: error %v, want refused: its node has no endpoint", vip, err)
		}
	}
}

func TestServiceFollowsItsEndpoints(t *testing.T) {
	endpoints := backends(t, 8080, "b1", "a2")
	service := topology.Service{Name: "moving", ClusterIPs: vips, Ports: []topology.ServicePort{{Protocol: "udp", Port: 80, Endpoints: endpoints[:2]}}}
	serve(t, service)
	client, err := dialFrom("a1", "udp", netip.AddrPortFrom(vip4, 80), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	exchange := func() string {
		buffer := make([]byte, 100)
		_ = client.SetDeadline(time.Now().Add(time.Second))
		if _, err := client.Write([]byte("?")); err != nil {
			return err.Error()
		}
		n, err := client.Read(buffer)
		if err != nil {
			return err.Error()
		}
		name, _, _ := strings.Cut(string(buffer[:n]), " ")
		return name
	}
	if got := exchange(); got != "b1" {
		t.Fatalf("answered by %s, want b1", got)
	}
	service.Ports[0].Endpoints = endpoints[2:]
	serve(t, service)
	if got := exchange(); got != "a2" {
		t.Errorf("a client that keeps its port is answered by %s after the endpoint moved, want a2", got)
	}
}

// TestUnknownServiceAddressDies: without the policy such a packet would go round between the router and the node until its
// hop limit ends.
func TestUnknownServiceAddressDies(t *testing.T) {
	for _, vip := range []string{"10.96.200.200", "fd00:10:96::c8c8"} {
		before := received(t, "node-1", "pb-mp0")
		if n := ping(t, "a1", vip); n != 0 {
			t.Errorf("%s: %d answers from an address that does not exist", vip, n)
		}
		if n := received(t, "node-1", "pb-mp0") - before; n > 10 {
			t.Errorf("%s: four packets made %d packets at the management port", vip, n)
		}
	}
}

func received(t *testing.T, where, device string) (packets int) {
	t.Helper()
	out, err := exec.Command("nsenter", "--net="+namespace(where), "cat", "/proc/net/dev").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(out), device+":")
	var octets int
	if _, err := fmt.Sscan(rest, &octets, &packets); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	return packets
}
