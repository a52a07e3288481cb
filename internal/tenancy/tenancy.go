// Package tenancy makes networks of their own for those who ask for them: it turns UserDefinedNetworks and
// ClusterUserDefinedNetworks into NetworkAttachmentDefinitions, keeps these as they should be while pods use them, and says in
// the objects' conditions what stands in the way. It makes the IPAMClaims by which machines keep their addresses. Everything else in Patchbay works from definitions, hand-made ones too; the
// package must not know how the overlay carries a network.
package tenancy

import (
	"fmt"
	"sync"
	"time"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"patchbay/internal/requeue"
	"patchbay/internal/settings"
)

// Config is what the controllers are made of.
type Config struct {
	// Settings are the cluster's: its ranges are not for tenants.
	Settings settings.Settings
	// Running tells whether a network is still carried, by its name: one that is asked for no longer goes when it is not.
	Running func(network string) bool
	// Now replaces the clock in tests.
	Now func() time.Time
}

// Tenancy is the controllers of both kinds, and of claims.
type Tenancy struct {
	Config
	client client.Client
	live   client.Reader // reads the API server itself, not the cache
	events events.EventRecorder

	// turn is held while a network is looked at and changed: whether a namespace has a primary network already must not be
	// asked by two at a time.
	turn sync.Mutex

	failed  failures
	wakeUDN requeue.Wakeups
	wakeC   requeue.Wakeups
}

// AddToManager adds the controllers to a manager. They run on the leader only.
func AddToManager(m manager.Manager, c Config) (*Tenancy, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if err := addIndexes(m); err != nil {
		return nil, fmt.Errorf("index networks: %w", err)
	}
	t := &Tenancy{
		Config: c, client: m.GetClient(), live: m.GetAPIReader(), events: m.GetEventRecorder(createdOwner),
		failed: failures{byNetwork: map[string]error{}},
	}
	for _, add := range []func(manager.Manager) error{t.addNamespaced, t.addClusterly, t.addClaims} {
		if err := add(m); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Indexes of the cache.
const (
	definitionsByOwner = "patchbay.owner"      // definitions, by the UID of the network object that made them
	podsByAttachment   = "patchbay.attachment" // pods, by "namespace/name" of the definitions that they use
	instancesByNetwork = "patchbay.network"    // instances, by networksOf
)

func newDefinition() client.Object { return &nadv1.NetworkAttachmentDefinition{} }

func newPod() client.Object { return &corev1.Pod{} }
