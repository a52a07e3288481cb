package cni

import (
	"context"
	"errors"
	"fmt"
	"strings"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"patchbay/internal/agent/cni/shim"
	"patchbay/internal/agent/delegate"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/home"
	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
	"patchbay/internal/tenancy/attachment"
)

// ParseDefault reads a pod's annotation v1.multus-cni.io/default-network: a name, NAMESPACE/NAME or a list of one in JSON. It is nil when
// the pod names no other network than the cluster's default one. A name alone has no namespace yet.
func ParseDefault(annotations map[string]string) (*Selection, error) {
	e, listed, err := attachment.ListedDefault[nadv1.NetworkSelectionElement](annotations)
	if err != nil {
		return nil, err
	}
	if !listed {
		text := strings.TrimSpace(annotations[attachment.DefaultNetworkAnnotation])
		if text == "" {
			return nil, nil
		}
		namespace, name, ok := strings.Cut(text, "/")
		if !ok {
			namespace, name = "", text
		}
		e.Namespace, e.Name = namespace, name
	}
	if e.Name == "" || strings.ContainsAny(e.Name, "/,@") {
		return nil, fmt.Errorf("annotation %s does not name one network attachment definition; write NAMESPACE/NAME", attachment.DefaultNetworkAnnotation)
	}
	if e.Name == podnetworks.Default && e.Namespace == home.Namespace {
		return nil, nil
	}
	return &Selection{Element: e}, nil
}

// defaultNetwork finds the definition of the pod's default network, if that is another plugin's. It is looked for in the pod's own
// namespace and then in the system's when the pod names no namespace.
func (p *Plugin) defaultNetwork(ctx context.Context, w *Wanted) (config string, err error) {
	s := w.Default
	if s == nil {
		return "", nil
	}
	namespaces := []string{s.Element.Namespace}
	if s.Element.Namespace == "" {
		namespaces = []string{w.Pod.Namespace, home.Namespace}
	}
	if p.Definitions == nil || p.Delegates == nil {
		return "", errors.New("this agent runs no CNI plugins of others")
	}
	for _, namespace := range namespaces {
		if config, err = p.Definitions.Definition(ctx, namespace, s.Element.Name); err == nil || !apierrors.IsNotFound(err) {
			s.Network = namespace + "/" + s.Element.Name
			break
		}
	}
	if apierrors.IsNotFound(err) && s.Element.Name == podnetworks.Default {
		w.Default = nil // its definition may lie elsewhere, or nowhere
		return "", nil
	}
	if err != nil {
		return "", p.noDefinition(ctx, w.Pod, namespaces[0], s.Element.Name, err)
	}
	kind, err := delegate.TypeOf([]byte(config))
	if err != nil {
		return "", &shim.Error{Code: shim.CodeInvalidConfig, Msg: fmt.Sprintf("network-attachment-definition %s: %v", s.Network, err)}
	}
	if kind != netconf.Type {
		return config, nil
	}
	n, err := netconf.Parse(s.Network, config)
	if err == nil && !n.IsDefault() {
		err = fmt.Errorf("is a network of the overlay; annotation %s can name the cluster's default network or one of another plugin: "+
			"give the namespace a primary user-defined network, or name it in annotation %s", attachment.DefaultNetworkAnnotation, nadv1.NetworkAttachmentAnnot)
	}
	if err != nil {
		return "", &shim.Error{Code: shim.CodeInvalidConfig, Msg: fmt.Sprintf("network-attachment-definition %s: %v", s.Network, err)}
	}
	w.Default = nil
	return "", nil
}

// noDefinition says that a pod asks for a network that does not exist.
func (p *Plugin) noDefinition(ctx context.Context, pod PodRef, namespace, name string, err error) error {
	text := fmt.Sprintf("cannot find a network-attachment-definition (%s) in namespace (%s): %v", name, namespace, err)
	p.warn(ctx, pod, ReasonNoNetwork, text)
	return &shim.Error{Code: shim.CodeTryAgainLater, Msg: text}
}

// first is the pod's first interface: on the cluster's default network, or what another plugin makes in its place. The address on the
// default network stays the pod's then, unused: its ports and policies refer to it.
func (r planFor) first(w *wiring) podnet.Interface {
	s := r.wanted.Default
	if s == nil {
		return r.overlay(podnetworks.Default, "")
	}
	named := *s
	named.Interface = r.sandbox.ifName
	w.delegates[named.Interface] = r.delegated(named, r.configs[s.Network])
	return podnet.Interface{Name: named.Interface, Attachment: s.Network, Default: len(primaries(r.wanted.Given)) == 1}
}
