package admission

import (
	"context"
	"slices"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Defaults of a cluster that nobody configured. The machine type is that of the oldest QEMU we support, so that a machine keeps
// its devices on every host and migrates between hosts of different age.
const (
	DefaultMachineType      = "pc-q35-7.2"
	DefaultArchitecture     = "amd64"
	DefaultNetworkInterface = "masquerade"
)

// Feature gates that the rules ask for.
const (
	GatePasstBinding               = "PasstBinding"
	GatePortRanges                 = "PortRangesSpec"
	GateNetworkDevicesWithDRA      = "NetworkDevicesWithDRA"
	GateDecentralizedLiveMigration = "DecentralizedLiveMigration"
)

// betaGates are on unless they are disabled; all others are off unless they are enabled (KubeVirt 1.9).
var betaGates = []string{GatePasstBinding, GateDecentralizedLiveMigration}

// Policy is what the cluster's administrator decided.
type Policy struct {
	MachineType      string
	Architecture     string
	NetworkInterface string // binding of the default NIC: masquerade, bridge, slirp (an error) or empty (bridge)
	BridgeOnPod      bool   // bridge binding is allowed on the pod network
	EvictionStrategy *virtv1.EvictionStrategy
	Gates            func(name string) bool
}

// DefaultPolicy is the policy of a cluster without a KubeVirt object. passt stays off until an administrator asks for it
// (chapter9 9.3.3.2-C5), although KubeVirt 1.9 turned its gate on for everybody.
func DefaultPolicy() Policy {
	return PolicyFrom(nil)
}

// PolicyFrom reads the policy of a KubeVirt object.
func PolicyFrom(kv *virtv1.KubeVirt) Policy {
	p := Policy{
		MachineType:      DefaultMachineType,
		Architecture:     DefaultArchitecture,
		NetworkInterface: DefaultNetworkInterface,
		BridgeOnPod:      true,
		Gates:            gates(nil, []string{GatePasstBinding}),
	}
	if kv == nil {
		return p
	}
	c := kv.Spec.Configuration
	if c.MachineType != "" {
		p.MachineType = c.MachineType
	}
	if c.NetworkConfiguration != nil {
		p.NetworkInterface = c.NetworkConfiguration.NetworkInterface
		if permit := c.NetworkConfiguration.PermitBridgeInterfaceOnPodNetwork; permit != nil {
			p.BridgeOnPod = *permit
		}
	}
	p.EvictionStrategy = c.EvictionStrategy
	p.Gates = gates(nil, nil)
	if d := c.DeveloperConfiguration; d != nil {
		p.Gates = gates(d.FeatureGates, d.DisabledFeatureGates)
	}
	return p
}

// PolicyOf gives the policy of a KubeVirt object at the time it is asked; the default one while there is no object. Give it a
// reader that caches: it is asked at every admission.
func PolicyOf(reader client.Reader, key client.ObjectKey) func() Policy {
	return func() Policy {
		kv := &virtv1.KubeVirt{}
		if err := reader.Get(context.Background(), key, kv); err != nil {
			return DefaultPolicy()
		}
		return PolicyFrom(kv)
	}
}

func gates(enabled, disabled []string) func(string) bool {
	return func(name string) bool {
		switch {
		case slices.Contains(enabled, name):
			return true
		case slices.Contains(disabled, name):
			return false
		default:
			return slices.Contains(betaGates, name)
		}
	}
}
