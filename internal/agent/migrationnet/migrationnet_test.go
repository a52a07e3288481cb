package migrationnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	hcov1beta1 "patchbay/api/hco/v1beta1"
	"patchbay/internal/agent/delegate"
)

// world is everything outside of a Network: what the administrator has written, and a plugin.
type world struct {
	*Network
	wanted      string
	definitions map[string]string // by NAMESPACE/NAME
	unreachable error             // of the API server
	gives       string            // what the plugin answers: an address with its length, or what is wrong
	calls       []string          // of the plugin
}

func newWorld() *world {
	w := &world{definitions: map[string]string{"openshift-cnv/net": "config"}, gives: "10.200.5.1/24"}
	w.Network = New(Config{
		Node: "node-1", Log: slog.New(slog.DiscardHandler), Delegates: w, Main: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/14")},
		Wanted: func(context.Context) (string, []string, error) {
			return w.wanted, []string{"openshift-cnv", "system"}, nil
		},
		NodeAddress: func(context.Context) (string, error) { return "172.30.0.11", nil },
		Definition: func(_ context.Context, namespace, name string) (string, error) {
			config, ok := w.definitions[namespace+"/"+name]
			if !ok && w.unreachable == nil {
				return "", apierrors.NewNotFound(schema.GroupResource{}, name)
			}
			return config, w.unreachable
		},
	})
	return w
}

func (w *world) Add(_ context.Context, a delegate.Attachment) (*current.Result, error) {
	w.calls = append(w.calls, fmt.Sprintf("add %s %s %s", a.Network, a.Interface, a.Config))
	ip, subnet, err := net.ParseCIDR(w.gives)
	if err != nil {
		return nil, errors.New(w.gives)
	}
	return &current.Result{IPs: []*current.IPConfig{{Address: net.IPNet{IP: ip, Mask: subnet.Mask}}}}, nil
}

func (w *world) Del(_ context.Context, container string, _ ...string) error {
	w.calls = append(w.calls, "del "+container)
	return nil
}

// The life of a network in the administrator's hands. Each step says what it did, where migrations come to, and what the plugin had to do.
func TestFollowsTheAdministrator(t *testing.T) {
	w := newWorld()
	const del = "del patchbay-migration-node-1"
	for _, step := range []struct {
		name   string
		do     func()
		place  string
		err    string
		plugin string
	}{
		{"nothing is wanted; what a killed agent had is given back", func() {}, "172.30.0.11 Pod", "", del},
		{"still nothing", func() {}, "172.30.0.11 Pod", "", ""},
		{"a network", func() { w.wanted = "net" }, "10.200.5.1 Migration", "", "add openshift-cnv/net migration0 config"},
		{"the same", func() {}, "10.200.5.1 Migration", "", ""},
		{"the API server is away", func() { w.unreachable = errors.New("away") }, "", "read the migration network openshift-cnv/net: away", ""},
		{"it is back", func() { w.unreachable = nil }, "10.200.5.1 Migration", "", ""},
		{"its definition changes", func() { w.definitions["openshift-cnv/net"] = "other" }, "10.200.5.1 Migration", "", del + ", add openshift-cnv/net migration0 other"},
		{"it has no address left", func() { w.definitions["openshift-cnv/net"] = "third"; w.gives = "no address is free" }, "",
			"node node-1 cannot join the migration network openshift-cnv/net: no address is free", del + ", add openshift-cnv/net migration0 third"},
		{"it has again", func() { w.gives = "10.200.5.2/24" }, "10.200.5.2 Migration", "", "add openshift-cnv/net migration0 third"},
		{"the definition is gone", func() { clear(w.definitions) }, "", "there is no NetworkAttachmentDefinition net in namespace openshift-cnv; make it, or remove", del},
		{"there is one in our own namespace", func() { w.definitions["system/net"] = "own" }, "10.200.5.2 Migration", "", "add system/net migration0 own"},
		{"another network", func() { w.wanted = "second"; w.definitions["openshift-cnv/second"] = "2" }, "10.200.5.2 Migration", "", del + ", add openshift-cnv/second migration0 2"},
		{"none any more", func() { w.wanted = "" }, "172.30.0.11 Pod", "", del},
	} {
		step.do()
		w.calls = nil
		told, before := 0, w.address()
		w.changed = func() { told++ }
		place, err := w.Place(t.Context())
		if (told > 0) != (before != w.address()) {
			t.Errorf("%s: told %d times of a change from %q to %q", step.name, told, before, w.address())
		}
		got := ""
		if err == nil {
			got = fmt.Sprint(place.Address, " ", place.Kind)
		}
		if got != step.place || (err == nil) != (step.err == "") || err != nil && !strings.Contains(err.Error(), step.err) {
			t.Errorf("%s: %q, %v", step.name, got, err)
		}
		if calls := strings.Join(w.calls, ", "); calls != step.plugin {
			t.Errorf("%s: the plugin was asked %q, want %q", step.name, calls, step.plugin)
		}
	}
}

// An address that leads elsewhere is given back.
func TestRangesThatLeadElsewhere(t *testing.T) {
	for gives, want := range map[string]string{
		"10.130.0.7/24":  "its range 10.130.0.0/24 overlaps 10.128.0.0/14, which the cluster's own network uses; choose another range",
		"10.0.0.1/8":     "its range 10.0.0.0/8 overlaps 10.128.0.0/14",
		"172.30.0.99/24": "its range 172.30.0.0/24 holds the node's own address 172.30.0.11; choose another range",
		"169.254.1.1/16": "migration0 present but doesn't have an IP",
	} {
		w := newWorld()
		w.wanted, w.gives = "net", gives
		if _, err := w.Place(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", gives, err)
		}
		if last := w.calls[len(w.calls)-1]; last != "del patchbay-migration-node-1" {
			t.Errorf("%s: the last call was %s", gives, last)
		}
	}
}

func TestReports(t *testing.T) {
	w := newWorld()
	c := fake.NewClientBuilder().WithScheme(clientgoscheme.Scheme).WithObjects(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}).Build()
	r := NewReporter(w.Network, c)
	for _, step := range []struct {
		name, wanted, gives, says string
	}{
		{"none", "", "", ""},
		{"no address", "net", "no address is free", `{"network":"net","problem":"node node-1 cannot join the migration network openshift-cnv/net: no address is free"}`},
		{"joined", "net", "10.200.5.1/24", `{"network":"net","address":"10.200.5.1"}`},
		{"still", "net", "", `{"network":"net","address":"10.200.5.1"}`},
		{"left", "", "", ""},
	} {
		w.wanted, w.gives = step.wanted, step.gives
		if _, err := r.Reconcile(t.Context(), reconcile.Request{}); err != nil {
			t.Fatal(step.name, err)
		}
		node := &corev1.Node{}
		if err := c.Get(t.Context(), client.ObjectKey{Name: "node-1"}, node); err != nil {
			t.Fatal(err)
		}
		if said := node.Annotations[hcov1beta1.MigrationNetworkAnnotation]; said != step.says {
			t.Errorf("%s: says %s, want %s", step.name, said, step.says)
		}
	}
}
