package cni

import (
	"context"
	"fmt"

	"patchbay/internal/agent/cni/shim"
	"patchbay/internal/agent/delegate"
	"patchbay/internal/netconf"
)

// ReasonNoNetwork is the reason of the event about a pod that asks for a network that does not exist.
const ReasonNoNetwork = "NoNetworkFound"

// definitions reads the definitions of the networks that the pod asks for and that the controller has not given. Those of other plugins
// come back with their configuration, ours with the keys to wait for. A default network that is the cluster's is taken out of w.
func (p *Plugin) definitions(ctx context.Context, w *Wanted) (configs map[string]string, ours []string, err error) {
	configs = map[string]string{}
	first, err := p.defaultNetwork(ctx, w)
	if err != nil {
		return nil, nil, err
	}
	if w.Default != nil {
		configs[w.Default.Network] = first
	}
	for _, s := range w.Selections {
		if _, given := w.Given[s.Key]; given {
			continue
		}
		if p.Definitions == nil || p.Delegates == nil {
			return nil, nil, fmt.Errorf("network %s: this agent runs no CNI plugins of others", s.Network)
		}
		config, err := p.Definitions.Definition(ctx, s.Element.Namespace, s.Element.Name)
		if err != nil {
			return nil, nil, p.noDefinition(ctx, w.Pod, s.Element.Namespace, s.Element.Name, err)
		}
		kind, err := delegate.TypeOf([]byte(config))
		if err != nil {
			return nil, nil, &shim.Error{Code: shim.CodeInvalidConfig, Msg: fmt.Sprintf("network-attachment-definition %s: %v", s.Network, err)}
		}
		if kind == netconf.Type {
			ours = append(ours, s.Key)
			continue
		}
		configs[s.Network] = config
	}
	return configs, ours, nil
}

func (p *Plugin) warn(ctx context.Context, pod PodRef, reason, message string) {
	if p.Warn != nil {
		p.Warn(ctx, pod, reason, message)
	}
}
