package agent

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"

	"sigs.k8s.io/controller-runtime/pkg/cache"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/nmstate"
	"patchbay/internal/agent/nodenet"
	"patchbay/internal/agent/ovs"
)

// checkpointFile holds the node's network as it was before a change that is not confirmed.
const checkpointFile = "network-checkpoint.json"

// rollBackNetwork takes back a change of the network in whose middle an agent died. It comes before everything else: the change
// may be what keeps this agent from the API server.
func rollBackNetwork(ctx context.Context, c Config) error {
	if _, err := os.Stat(c.File(checkpointFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	db, err := ovs.Connect(ctx, c.OVS, c.Log)
	if err != nil {
		return err
	}
	defer db.Close()
	datapath, err := db.EnsureIntegrationBridge(ctx)
	if err != nil {
		return err
	}
	guard, err := guardOf(datapath)
	if err != nil {
		return err
	}
	log := c.Log.With("part", "node network policies")
	node := &nmstate.Node{Name: c.Node, Switch: db, Guard: guard, Management: nodenet.ManagementDevice, Log: log}
	if _, err := (&nmstate.Enactor{Node: node, File: c.File(checkpointFile)}).Recover(ctx); err != nil {
		log.Error("an unfinished network change was not taken back as a whole", "error", err) // the agent has more to do than this
	}
	return nil
}

func guardOf(datapath ovs.Datapath) (link.Guard, error) {
	if datapath == ovs.Userspace {
		return link.NewShield()
	}
	return link.Open{}, nil
}

// addNodePolicies carries out NodeNetworkConfigurationPolicies and reports the node's network.
func addNodePolicies(_ context.Context, h *Host) error {
	log := h.Log.With("part", "node network policies")
	node := &nmstate.Node{Name: h.Node, Switch: h.OVS, Guard: h.Guard, Management: nodenet.ManagementDevice, Log: log}
	reporter := nmstate.NewReporter(node, h.Manager.GetClient(), h.Manager.GetAPIReader(), log)
	if err := h.Manager.Add(reporter); err != nil {
		return err
	}
	policies := nmstate.NewPolicies(nmstate.Config{
		Node:    h.Node,
		Client:  h.Manager.GetClient(),
		Live:    h.Manager.GetAPIReader(),
		Enactor: &nmstate.Enactor{Node: node, File: h.File(checkpointFile), Probes: nmstate.Probes(h.Manager.GetConfig(), h.Manager.GetAPIReader(), h.Node)},
		Events:  recorder{h.Manager.GetEventRecorder("patchbay-agent")},
		Changed: reporter.Soon,
		Allowed: h.mayChangeNetwork,
		Log:     log,
	})
	return policies.AddToManager(h.Manager)
}

// mayChangeNetwork keeps policies away from a host's own network unless its administrator decided otherwise.
func (h *Host) mayChangeNetwork() error {
	if h.Settings.ManageHostNetwork {
		return nil
	}
	if nmstate.InRootNamespace() {
		return nmstate.ErrRootNamespace
	}
	return nil
}

// withNodePolicies adds the kinds that node network policies need to a cache.
func withNodePolicies(options cache.Options, node string) cache.Options {
	maps.Copy(options.ByObject, nmstate.CacheOptions(node))
	return options
}
