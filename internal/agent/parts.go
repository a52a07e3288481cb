package agent

import (
	"context"
	"fmt"
	"path/filepath"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/knftables"

	nmstatev1 "patchbay/api/nmstate/v1"
	wbv1alpha1 "patchbay/api/whereabouts/v1alpha1"
	"patchbay/internal/agent/cni"
	"patchbay/internal/agent/devices"
	"patchbay/internal/agent/heartbeat"
	"patchbay/internal/agent/nodenet"
	"patchbay/internal/qemu"
)

// Parts is everything that an agent does. A new job is a package that knows nothing of this one, a function here that
// hands it what it needs of the host, and a line in this list.
func Parts() []Part {
	return []Part{
		{"node network", addNodeNetwork},
		{"node network policies", addNodePolicies},
		{"addresses", addAddresses},
		{"CNI server", addCNI},
		{"devices", addDevices},
		{"virtual machines", addMachines},
		{"volumes", addVolumes},
		{"heartbeat", addHeartbeat},
	}
}

// newScheme holds the API types that the parts read and write.
func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	_ = clientgoscheme.AddToScheme(s) // these add to a map; they cannot fail
	_ = virtv1.AddToScheme(s)
	_ = nmstatev1.AddToScheme(s)
	_ = nadv1.AddToScheme(s)
	_ = wbv1alpha1.AddToScheme(s)
	return s
}

func addNodeNetwork(_ context.Context, h *Host) error {
	rules, err := knftables.New(knftables.InetFamily, nodenet.Table)
	if err != nil {
		return fmt.Errorf("nftables (is nft installed?): %w", err)
	}
	h.Network = nodenet.New(nodenet.Config{
		Settings: h.Settings, Node: h.Node, Reader: h.Manager.GetClient(), Ports: h.OVS, Guard: h.Guard, NFT: rules,
		AnyNetns: h.AnyNetns, Log: h.Log.With("part", "nodenet"),
	})
	return h.Network.AddToManager(h.Manager)
}

// addCNI serves pods once the node's own network stands: kubelet takes the configuration file as the sign that it may
// start pods.
func addCNI(ctx context.Context, h *Host) error {
	log := h.Log.With("part", "cni")
	pods, err := cni.NewKubePods(ctx, h.Manager.GetCache(), h.Manager.GetAPIReader(), h.Manager.GetClient())
	if err != nil {
		return err
	}
	plugin, err := h.newPlugin(ctx, pods, log)
	if err != nil {
		return err
	}
	if err := h.followNetworks(h.Manager, plugin); err != nil {
		return err
	}
	return h.Manager.Add(manager.RunnableFunc(func(ctx context.Context) error {
		select {
		case <-h.Network.Ready():
		case <-ctx.Done():
			return nil
		}
		exists, err := h.podExists(ctx)
		if err != nil {
			return err
		}
		if err := plugin.Recover(ctx, exists); err != nil {
			return err
		}
		server, err := cni.Listen(h.File("cni.sock"), plugin.Do, log)
		if err != nil {
			return err
		}
		err = cni.Install(filepath.Join(h.BinDir, cni.PluginName), h.pluginDir(), filepath.Join(h.Dir, "cni", "net.d"), h.File("cni.sock"))
		if err != nil {
			return err
		}
		log.Info("ready for pods")
		return server.Serve(ctx)
	}))
}

// podExists tells which pods the API server had when the cache was filled.
func (h *Host) podExists(ctx context.Context) (func(types.UID) bool, error) {
	var pods corev1.PodList
	if err := h.Manager.GetClient().List(ctx, &pods); err != nil {
		return nil, fmt.Errorf("list this node's pods: %w", err)
	}
	known := map[types.UID]bool{}
	for _, pod := range pods.Items {
		known[pod.UID] = true
	}
	return func(uid types.UID) bool { return known[uid] }, nil
}

// addDevices lets machines' pods ask for what they cannot open themselves.
func addDevices(_ context.Context, h *Host) error {
	return h.Manager.Add(devices.New(devices.Config{
		Device: devices.KVM(), Dir: filepath.Join(h.KubeletRoot(), "device-plugins"), Log: h.Log.With("part", "devices"),
	}))
}

func addHeartbeat(_ context.Context, h *Host) error {
	return heartbeat.New(heartbeat.Config{
		Node: h.Node, Client: h.Manager.GetClient(), Log: h.Log.With("part", "heartbeat"),
		Accelerator: func() qemu.Accelerator {
			if devices.CheckKVM() != nil {
				return qemu.TCG
			}
			return qemu.KVM
		},
	}).AddToManager(h.Manager)
}
