package nodenet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

var (
	// ErrWrongPlace says that this network namespace is not the node's. The agent sets sysctls, routes and rules for the whole
	// namespace, which must not be a host that is not meant.
	ErrWrongPlace = errors.New("this network namespace has none of the node's addresses; start the agent in the node's, or say --any-netns")
	// ErrNoAddress says that kubelet has not reported where the node is.
	ErrNoAddress = errors.New("kubelet has not reported the node's InternalIP yet")
)

// checkPlace makes sure once that this is the node's namespace. Later the node's address may come and go: ovs-vswitchd takes
// the device that carries it along when it restarts.
func (n *Network) checkPlace(node *corev1.Node) error {
	if n.placed || n.AnyNetns {
		return nil
	}
	local, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("list own addresses: %w", err)
	}
	n.placed, err = holdsNode(local, node)
	return err
}

func holdsNode(local []net.Addr, node *corev1.Node) (bool, error) {
	var known []string
	for _, a := range node.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		known = append(known, a.Address)
		if want, err := netip.ParseAddr(a.Address); err == nil && hasAddr(local, want) {
			return true, nil
		}
	}
	if len(known) == 0 {
		return false, ErrNoAddress
	}
	return false, fmt.Errorf("%w (node %s is at %v)", ErrWrongPlace, node.Name, known)
}

func hasAddr(local []net.Addr, want netip.Addr) bool {
	for _, a := range local {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().WithZone("") == want {
			return true
		}
	}
	return false
}
