package launcherpod

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/home"
	"patchbay/internal/machinepod"
	"patchbay/internal/podnetworks"
	"patchbay/internal/tenancy/attachment"
)

// Keys that no imported package names.
const (
	istioInject      = "sidecar.istio.io/inject"
	istioInterfaces  = "traffic.sidecar.istio.io/kubevirtInterfaces"
	istioReroute     = "istio.io/reroute-virtual-interfaces"
	defaultContainer = "kubectl.kubernetes.io/default-container"
	requestEvictOnly = "descheduler.alpha.kubernetes.io/request-evict-only"
	guestBridge      = "k6t-eth0" // the name that mesh sidecars know, whatever the pod's interface is called
)

func podLabels(r Request) map[string]string {
	vmi := r.VMI
	labels := maps.Clone(vmi.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[virtv1.AppLabel] = machinepod.App
	labels[virtv1.CreatedByLabel] = string(vmi.UID)
	labels[virtv1.DeprecatedVirtualMachineNameLabel] = Hostname(vmi)
	labels[virtv1.VirtualMachineInstanceIDLabel] = ID(vmi.Name)
	if inject, ok := vmi.Annotations[istioInject]; ok {
		labels[istioInject] = inject
	}
	if r.Migration != nil {
		labels[virtv1.MigrationJobLabel] = string(r.Migration.UID)
		delete(labels, virtv1.NodeNameLabel) // the source's
	}
	return labels
}

// passesThrough says whether an annotation of the machine reaches its pod. Users configure CNI plugins that way.
func passesThrough(key string) bool {
	switch key {
	case virtv1.ControllerAPIStorageVersionObservedAnnotation, virtv1.ControllerAPILatestVersionObservedAnnotation:
		return false
	}
	return !strings.HasPrefix(key, "kubectl.kubernetes.io")
}

func podAnnotations(r Request) (map[string]string, error) {
	annotations := map[string]string{}
	for k, v := range r.VMI.Annotations {
		if passesThrough(k) {
			annotations[k] = v
		}
	}
	annotations[virtv1.DomainAnnotation] = r.VMI.Name
	annotations[defaultContainer] = Container
	annotations[virtv1.MigrationTransportUnixAnnotation] = "true"
	annotations[requestEvictOnly] = ""
	if r.Migration != nil {
		annotations[virtv1.MigrationJobNameAnnotation] = r.Migration.Name
	}
	networks, err := NetworkAnnotation(r.Cluster, r.VMI, r.Overlay)
	if err != nil {
		return nil, err
	}
	if networks != "" {
		annotations[nadv1.NetworkAttachmentAnnot] = networks
	}
	for _, n := range r.VMI.Spec.Networks {
		if n.Multus != nil && n.Multus.Default {
			annotations[attachment.DefaultNetworkAnnotation] = n.Multus.NetworkName
		}
	}
	if err := askPrimary(annotations, r.Overlay); err != nil {
		return nil, err
	}
	if usesMasquerade(r.VMI) {
		annotations[istioInterfaces] = guestBridge
		annotations[istioReroute] = guestBridge
	}
	return annotations, nil
}

// defaultNetwork is the element by which a pod asks for addresses on its primary network. It names the cluster's default
// network, as OVN-Kubernetes wants it.
type defaultNetwork struct {
	Name      string         `json:"name"`
	Namespace string         `json:"namespace"`
	IPs       []netip.Prefix `json:"ips,omitempty"`
	MAC       string         `json:"mac,omitempty"`
	Claim     string         `json:"ipam-claim-reference,omitempty"`
}

// askPrimary asks for what the machine is to have on the primary network of its namespace.
func askPrimary(annotations map[string]string, overlay map[string]attachment.Request) error {
	for _, r := range overlay {
		if !r.Primary {
			continue
		}
		if r.Claim != "" {
			annotations[attachment.ClaimAnnotation] = r.Claim
		}
		if len(r.Addresses) == 0 && r.MAC == "" {
			return nil
		}
		text, err := json.Marshal([]defaultNetwork{{
			Name: "default", Namespace: home.Namespace, IPs: r.Addresses, MAC: r.MAC, Claim: r.Claim,
		}})
		annotations[attachment.DefaultNetworkAnnotation] = string(text)
		return err
	}
	return nil
}

func usesMasquerade(vmi *virtv1.VirtualMachineInstance) bool {
	for _, nic := range vmi.Spec.Domain.Devices.Interfaces {
		if nic.Masquerade != nil {
			return true
		}
	}
	return false
}

// selection is one element of the annotation that asks for secondary networks.
type selection struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	Interface string            `json:"interface,omitempty"`
	MAC       string            `json:"mac,omitempty"`
	Claim     string            `json:"ipam-claim-reference,omitempty"`
	CNIArgs   map[string]string `json:"cni-args,omitempty"`
}

// NetworkAnnotation is the value of k8s.v1.cni.cncf.io/networks for the machine's present interfaces; empty when none needs it.
func NetworkAnnotation(c Cluster, vmi *virtv1.VirtualMachineInstance, overlay map[string]attachment.Request) (string, error) {
	present := map[string]virtv1.Interface{}
	for _, nic := range vmi.Spec.Domain.Devices.Interfaces {
		if nic.State != virtv1.InterfaceStateAbsent {
			present[nic.Name] = nic
		}
	}
	var list []selection
	for _, n := range vmi.Spec.Networks {
		nic, ok := present[n.Name]
		if !ok {
			continue
		}
		if n.Multus != nil && !n.Multus.Default {
			namespace, name := AttachmentKey(vmi.Namespace, n.Multus.NetworkName)
			list = append(list, selection{
				Name: name, Namespace: namespace, Interface: podnetworks.InterfaceName(n.Name), MAC: nic.MacAddress, Claim: overlay[n.Name].Claim,
			})
		}
		extra, err := pluginSelection(c, vmi, n.Name, nic)
		if err != nil {
			return "", err
		}
		list = append(list, extra...)
	}
	if len(list) == 0 {
		return "", nil
	}
	text, err := json.Marshal(list)
	return string(text), err
}

// pluginSelection asks for the attachment that a binding plugin brings along.
func pluginSelection(c Cluster, vmi *virtv1.VirtualMachineInstance, network string, nic virtv1.Interface) ([]selection, error) {
	if nic.Binding == nil {
		return nil, nil
	}
	plugin, ok := c.Plugins[nic.Binding.Name]
	if !ok {
		return nil, fmt.Errorf("unable to find the network binding plugin '%s' in Kubevirt configuration", nic.Binding.Name)
	}
	if plugin.NetworkAttachmentDefinition == "" {
		return nil, nil
	}
	namespace, name := AttachmentKey(vmi.Namespace, plugin.NetworkAttachmentDefinition)
	return []selection{{Name: name, Namespace: namespace, CNIArgs: map[string]string{"logicNetworkName": network}}}, nil
}

// AttachmentKey splits "namespace/name" at the first slash; without one the machine's namespace is meant.
func AttachmentKey(namespace, networkName string) (ns, name string) {
	if ns, name, ok := strings.Cut(networkName, "/"); ok {
		return ns, name
	}
	return namespace, networkName
}
