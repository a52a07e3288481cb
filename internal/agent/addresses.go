package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	wbv1alpha1 "patchbay/api/whereabouts/v1alpha1"
	"patchbay/internal/agent/cni"
	"patchbay/internal/agent/cni/shim"
	"patchbay/internal/agent/delegate"
	"patchbay/internal/agent/migrationnet"
	"patchbay/internal/agent/whereabouts"
	"patchbay/internal/home"
	"patchbay/internal/machinepod"
)

// reasonNoAddress is the reason of the event about a pod whose network has no address for it, whoever gives the addresses.
const reasonNoAddress = "ErrorAllocatingPod"

// addAddresses answers the IPAM plugin whereabouts. Its requests come from plugins that this agent runs.
func addAddresses(_ context.Context, h *Host) error {
	log := h.Log.With("part", "addresses")
	api := h.Manager.GetAPIReader()
	recorder := h.Manager.GetEventRecorder("patchbay-agent")
	h.addresses = whereabouts.New(whereabouts.Config{
		Socket: h.File("addresses.sock"),
		Store:  whereabouts.Store{Reader: api, Writer: h.Manager.GetClient(), Namespace: home.Namespace},
		Owner: func(ctx context.Context, pod shim.Pod) (wbv1alpha1.Owner, error) {
			return addressOwner(ctx, api, h.Node, pod)
		},
		Warn: func(_ context.Context, pod shim.Pod, message string) {
			if pod.UID == migrationnet.Container(h.Node) {
				return // it is no pod; the Node says it
			}
			recorder.Eventf(&corev1.ObjectReference{
				APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID),
			}, nil, corev1.EventTypeWarning, reasonNoAddress, reasonNoAddress, "%s", message)
		},
	})
	dhcp := &delegate.DHCP{Program: filepath.Join(h.BinDir, delegate.Program), Socket: h.File("dhcp.sock"), Log: log}
	h.preparePlugin = func(ctx context.Context, plugin map[string]any) error {
		return errors.Join(h.addresses.Prepare(ctx, plugin), dhcp.Prepare(ctx, plugin))
	}
	if err := delegate.Link(filepath.Join(h.BinDir, cni.PluginName), h.pluginDir(), whereabouts.Type); err != nil {
		return err
	}
	// Before anything runs: what a former agent has left is given back as the first thing.
	server, err := cni.Listen(h.addresses.Socket, h.addresses.Do, log)
	if err != nil {
		return err
	}
	return h.Manager.Add(manager.RunnableFunc(server.Serve))
}

// addressOwner says for whom an address is kept.
func addressOwner(ctx context.Context, pods client.Reader, node string, pod shim.Pod) (wbv1alpha1.Owner, error) {
	if pod.UID == migrationnet.Container(node) {
		return wbv1alpha1.Owner{Kind: wbv1alpha1.OwnerNode, Name: node}, nil
	}
	found := &corev1.Pod{}
	if err := pods.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: pod.Name}, found); err != nil {
		return wbv1alpha1.Owner{}, fmt.Errorf("read pod %s/%s, which wants an address: %w", pod.Namespace, pod.Name, err)
	}
	if machine, ok := machinepod.Of(found); ok {
		return wbv1alpha1.Owner{Kind: wbv1alpha1.OwnerMachine, Namespace: pod.Namespace, Name: machine.Name}, nil
	}
	return wbv1alpha1.Owner{Namespace: pod.Namespace, Name: pod.Name}, nil
}

// delegates runs other plugins, with records in a directory of the agent's.
func (h *Host) delegates(dir string) *delegate.Runner {
	return delegate.New(delegate.Config{PluginDirs: []string{h.pluginDir()}, Dir: h.File(dir), Prepare: h.preparePlugin})
}

// pluginDir is where the runtime and the agent find CNI plugins.
func (h *Host) pluginDir() string { return filepath.Join(h.Dir, "cni", "bin") }
