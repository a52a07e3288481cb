package tenancy

import (
	"strings"
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/netconf"
)

// failures are the networks whose rows the overlay refused.
type failures struct {
	mu        sync.Mutex
	byNetwork map[string]error
}

func (f *failures) set(network string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.byNetwork, network)
		return
	}
	f.byNetwork[network] = err
}

func (f *failures) of(network string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byNetwork[network]
}

// Report tells that the overlay refused the rows of an owner, or with nil that it takes them after all; it is for
// ovn.Config.Report.
func (t *Tenancy) Report(owner string, err error) {
	network, ok := strings.CutPrefix(owner, "network/")
	if !ok {
		return
	}
	t.failed.set(network, err)
	namespace, name, ok := netconf.AskedBy(network)
	switch {
	case ok && namespace == "":
		t.wakeC.Wake(client.ObjectKey{Name: name})
	case ok:
		t.wakeUDN.Wake(client.ObjectKey{Namespace: namespace, Name: name})
	}
}
