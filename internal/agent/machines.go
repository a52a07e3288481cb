package agent

import (
	"context"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"patchbay/internal/agent/access"
	"patchbay/internal/agent/vmdriver"
	"patchbay/internal/launcher/userfault"
	"patchbay/internal/qemu"
	"patchbay/internal/volume"
)

// firmware is where the launcher's image holds UEFI.
var firmware = qemu.EFI{
	Code: "/usr/share/OVMF/OVMF_CODE_4M.fd", Vars: "/usr/share/OVMF/OVMF_VARS_4M.fd",
	SecureCode: "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", SecureVars: "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
}

// addMachines runs the node's virtual machines and lets the controller reach them.
func addMachines(ctx context.Context, h *Host) error {
	log := h.Log.With("part", "machines")
	masquerade, err := vmdriver.NewMasquerade(log)
	if err != nil {
		return err
	}
	reach := h.newReach(log)
	if err := reach.Recover(ctx); err != nil {
		return err
	}
	migrations, err := h.migrationNetwork(log)
	if err != nil {
		return err
	}
	arriving, err := h.arrivingMachines()
	if err != nil {
		return err
	}
	driver := vmdriver.New(vmdriver.Config{
		Node:        h.Node,
		KubeletRoot: h.KubeletRoot(),
		Client:      h.Manager.GetClient(),
		Live:        h.Manager.GetAPIReader(),
		Pods:        h.Pods,
		Taps:        &vmdriver.Taps{Ports: h.OVS, Guard: h.Workloads, Dial: dialOverlay(reach)},
		Wirers: map[string]vmdriver.Wirer{
			vmdriver.BindingMasquerade: masquerade,
			vmdriver.BindingBridge:     &vmdriver.Bridge{Serve: true, Log: log},
			vmdriver.BindingL2Bridge:   &vmdriver.Bridge{Log: log},
			vmdriver.BindingPasst:      vmdriver.Passt{},
		},
		OpenVhost: vmdriver.OpenVhostNet,
		EFI:       &firmware,
		UserFault: userfault.Device,
		Events:    recorder{h.Manager.GetEventRecorder("patchbay-agent")},
		Arriving:  arriving,
		TLSDir:    filepath.Join(h.Dir, "pki", "agent"),
		StateDir:  h.File("migrations"),
		Log:       log,

		MigrationPlace: migrations.Place,
	})
	if err := driver.AddToManager(h.Manager); err != nil {
		return err
	}
	server := access.New(access.Config{Machines: driver, TLSDir: filepath.Join(h.Dir, "pki", "agent"), Log: h.Log.With("part", "access")})
	return h.Manager.Add(manager.RunnableFunc(func(ctx context.Context) error {
		address, err := h.address(ctx)
		if err != nil {
			return err
		}
		listener, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(access.Port)))
		if err != nil {
			return fmt.Errorf("listen for the controller: %w", err)
		}
		return server.Serve(ctx, listener)
	}))
}

// recorder records events about objects that stand for themselves: the reason says what was done.
type recorder struct{ events.EventRecorder }

// Event implements vmdriver.Recorder.
func (r recorder) Event(object runtime.Object, kind, reason, message string) {
	r.Eventf(object, nil, kind, reason, reason, "%s", message)
}

// address is the node's first address in the network that joins the nodes. It waits for the kubelet, which says it some time after it
// has registered the node.
func (h *Host) address(ctx context.Context) (string, error) {
	address, told := "", false
	err := wait.PollUntilContextCancel(ctx, addressPoll, true, func(ctx context.Context) (bool, error) {
		var node corev1.Node
		if err := h.Manager.GetAPIReader().Get(ctx, client.ObjectKey{Name: h.Node}, &node); client.IgnoreNotFound(err) != nil {
			return false, fmt.Errorf("read this node's addresses: %w", err)
		}
		for _, a := range node.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				address = a.Address
				return true, nil
			}
		}
		if !told {
			told = true
			h.Log.Info("this node has no internal IP yet; waiting for its kubelet to say it")
		}
		return false, nil
	})
	return address, err
}

// addressPoll is how often a new node is asked for its address.
const addressPoll = 500 * time.Millisecond

// addVolumes makes the directories of the node's local-path volumes.
func addVolumes(_ context.Context, h *Host) error {
	kube, err := kubernetes.NewForConfig(h.Manager.GetConfig())
	if err != nil {
		return err
	}
	return h.Manager.Add(&volume.Directories{Client: kube, Node: h.Node, Dir: volume.Directory(filepath.Dir(h.Dir), h.Node)})
}

// withMachines adds the kinds that virtual machines need to a cache.
func withMachines(options cache.Options, node string) cache.Options {
	maps.Copy(options.ByObject, vmdriver.CacheOptions(node))
	return options
}
