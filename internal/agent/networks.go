package agent

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/agent/cni"
	"patchbay/internal/agent/delegate"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/agent/reach"
	"patchbay/internal/netconf"
)

// newPlugin is what connects pods: ourselves to the overlay, the CNI plugins of others to everything else.
func (h *Host) newPlugin(ctx context.Context, pods *cni.KubePods, log *slog.Logger) (*cni.Plugin, error) {
	dir, program := h.pluginDir(), filepath.Join(h.BinDir, delegate.Program)
	if err := delegate.Install(ctx, program, dir); err != nil {
		log.Warn("networks of other CNI plugins work only with programs that you put into the directory yourself", "directory", dir, "error", err)
	}
	recorder := h.Manager.GetEventRecorder("patchbay-agent")
	return cni.New(cni.Config{
		Pods: pods, Ports: h.OVS, Guard: h.Workloads, Records: h.Pods, MTU: h.Settings.PodMTU, Log: log,
		Inside:      slices.Concat(h.Settings.ClusterCIDRs, h.Settings.ServiceCIDRs),
		Definitions: definitions{h.Manager.GetAPIReader()},
		Delegates:   h.delegates("delegates"),
		Warn: func(_ context.Context, ref cni.PodRef, reason, message string) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID}}
			recorder.Eventf(pod, nil, corev1.EventTypeWarning, reason, reason, "%s", message)
		},
	}), nil
}

// definitions reads network-attachment-definitions from the API server: they are needed once in a pod's life.
type definitions struct{ client.Reader }

// Definition implements cni.Definitions.
func (d definitions) Definition(ctx context.Context, namespace, name string) (string, error) {
	var nad nadv1.NetworkAttachmentDefinition
	err := d.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &nad)
	return nad.Spec.Config, err
}

// newReach is the agent's way to guests on tenants' networks.
func (h *Host) newReach(log *slog.Logger) *reach.Reach {
	definitions := definitions{h.Manager.GetAPIReader()}
	return reach.New(reach.Config{Ports: h.OVS, Guard: h.Guard, Log: log, Find: func(ctx context.Context, attachment string) (reach.Network, error) {
		namespace, name, _ := strings.Cut(attachment, "/")
		name, _, _ = strings.Cut(name, "/")
		config, err := definitions.Definition(ctx, namespace, name)
		if err != nil {
			return reach.Network{}, err
		}
		n, err := netconf.Parse(namespace+"/"+name, config)
		if err != nil {
			return reach.Network{}, err
		}
		found := reach.Network{Name: n.Name, MTU: cmp.Or(n.MTU, h.Settings.PodMTU)}
		_, management := n.Kept()
		for i, a := range management {
			found.Addresses = append(found.Addresses, netip.PrefixFrom(a, n.Subnets[i].CIDR.Bits()))
		}
		return found, nil
	}})
}

// dialOverlay is vmdriver.Taps.Dial.
func dialOverlay(r *reach.Reach) func(context.Context, podnet.Interface, string, netip.AddrPort) (net.Conn, error) {
	return func(ctx context.Context, i podnet.Interface, proto string, to netip.AddrPort) (net.Conn, error) {
		return r.Dial(ctx, i.Network, i.Attachment, proto, to)
	}
}
