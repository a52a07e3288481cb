package network

import (
	"context"
	"strings"
	"time"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// concerned is an object whose rows were refused.
type concerned struct {
	object client.Object
	key    client.ObjectKey
}

// Report tells users that rows were refused; it is for ovn.Config.Report. Whoever asked for the network by a user-defined one learns
// of it there.
func (n *Network) Report(owner string, err error) {
	if err == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, c := range n.concerned(owner) {
		if n.client.Get(ctx, c.key, c.object) == nil {
			n.warn(c.object, reasonRefused, "the overlay refused what this object needs (%s), Patchbay keeps trying: %v", owner, err)
		}
	}
}

// concerned are the objects that an owner of rows stands for.
func (n *Network) concerned(owner string) []concerned {
	kind, name, _ := strings.Cut(owner, "/")
	if kind == "network" || kind == "gateway" {
		var out []concerned
		for _, key := range keysOf(n.tenants.definitionsOf(name)) {
			out = append(out, concerned{&nadv1.NetworkAttachmentDefinition{}, key})
		}
		return out
	}
	object, known := map[string]client.Object{
		"pod": newPod(), "service": newService(), "node": newNode(), "nic": &virtv1.VirtualMachineInstance{},
		"networkpolicy": newPolicy(), "multinetworkpolicy": newMultiPolicy(),
	}[kind]
	if !known {
		return nil
	}
	key := client.ObjectKey{Name: name}
	if parts := strings.SplitN(name, "/", 3); len(parts) > 1 {
		key = client.ObjectKey{Namespace: parts[0], Name: parts[1]} // what follows is a part of the object
	}
	return []concerned{{object, key}}
}

func (t *tenants) definitionsOf(network string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.catalog.Definitions(network)
}
