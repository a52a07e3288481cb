package nmstate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Probes are what a node must still be able to do after a change.
func Probes(config *rest.Config, live client.Reader, node string) []Probe {
	return []Probe{
		{Name: "api-server", Always: true, Check: func(ctx context.Context) error { return reachAPI(ctx, config) }},
		{Name: "node readiness", Always: true, Check: func(ctx context.Context) error { return nodeReady(ctx, live, node) }},
		{Name: "ping", Check: pingGateway},
	}
}

// reachAPI asks over a connection of its own: one that stands already may outlive the way that made it.
func reachAPI(ctx context.Context, config *rest.Config) error {
	fresh := rest.CopyConfig(config)
	fresh.Dial = (&net.Dialer{}).DialContext // not shared with other clients' connections
	web, err := rest.HTTPClientFor(fresh)
	if err != nil {
		return err
	}
	defer web.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fresh.Host+"/readyz", nil)
	if err != nil {
		return err
	}
	request.Close = true
	answer, err := web.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the API server answers %s", answer.Status)
	}
	return nil
}

func nodeReady(ctx context.Context, live client.Reader, name string) error {
	var node corev1.Node
	if err := live.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("node %s is not ready", name)
}

// pingGateway asks the IPv4 default gateway for an echo.
func pingGateway(ctx context.Context) error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if isDefault(r.Dst) && r.Gw != nil {
			return ping(ctx, r.Gw)
		}
	}
	return errors.New("there is no default gateway")
}

func isDefault(n *net.IPNet) bool {
	if n == nil {
		return true
	}
	ones, _ := n.Mask.Size()
	return ones == 0
}

func ping(ctx context.Context, to net.IP) error {
	conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	id := os.Getpid() & 0xffff
	message := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: 1, Data: []byte("patchbay")}}
	data, err := message.Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := conn.WriteTo(data, &net.IPAddr{IP: to}); err != nil {
		return err
	}
	buffer := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return fmt.Errorf("gateway %s does not answer: %w", to, errors.Join(err, context.Cause(ctx)))
		}
		answer, err := icmp.ParseMessage(1, buffer[:n])
		if err != nil {
			continue
		}
		if echo, ok := answer.Body.(*icmp.Echo); ok && answer.Type == ipv4.ICMPTypeEchoReply && echo.ID == id && from.String() == to.String() {
			return nil
		}
	}
}
