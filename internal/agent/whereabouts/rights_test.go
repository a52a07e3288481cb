package whereabouts

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/api/crds"
	wbv1alpha1 "patchbay/api/whereabouts/v1alpha1"
	"patchbay/internal/cluster/bootstrap"
	"patchbay/internal/cluster/pki"
	"patchbay/internal/network/reclaim"
	"patchbay/test/apiserver"
)

var server *apiserver.Server

func TestMain(m *testing.M) { os.Exit(apiserver.Run(m, &server)) }

// On a real API server, with the rights of two nodes' agents and of the controller: many pods at once, and what is left of them is
// taken back.
func TestWithTheRightsOfNodes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := bootstrap.Apply(ctx, server.Config, []string{"node-1", "node-2"}); err != nil {
		t.Fatal(err)
	}
	if err := crds.Apply(ctx, server.Config); err != nil {
		t.Fatal(err)
	}
	as := func(user string, groups ...string) client.Client {
		t.Helper()
		scheme := runtime.NewScheme()
		for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, virtv1.AddToScheme, wbv1alpha1.AddToScheme} {
			if err := add(scheme); err != nil {
				t.Fatal(err)
			}
		}
		config := server.As(user)
		config.Impersonate.Groups = groups
		c, err := client.New(config, client.Options{Scheme: scheme})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	var agents []client.Client
	var nodes []*node
	for _, name := range []string{"node-1", "node-2"} {
		c := as(pki.AgentUserPrefix+name, pki.AgentGroup)
		n := newNode(c)
		n.Store.Namespace = "patchbay-system"
		agents, nodes = append(agents, c), append(nodes, n)
	}
	var mu sync.Mutex
	given := map[string]bool{}
	var group errgroup.Group
	for i := range 14 {
		group.Go(func() error {
			got, err := nodes[i%2].ask("ADD", fmt.Sprint("p", i), `{"range":"10.0.0.0/28"}`)
			mu.Lock()
			defer mu.Unlock()
			given[got] = true
			return err
		})
	}
	if err := group.Wait(); err != nil || len(given) != 14 {
		t.Fatalf("addresses %v, %v", given, err)
	}
	nodes[1].del(t, "p0", `{"range":"10.0.0.0/28"}`)

	elsewhere := &wbv1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "x"}, Spec: wbv1alpha1.IPPoolSpec{Allocations: map[string]wbv1alpha1.IPAllocation{}}}
	if err := agents[0].Create(ctx, elsewhere); !apierrors.IsForbidden(err) {
		t.Errorf("an agent makes a pool in another namespace: %v", err)
	}
	if err := agents[0].List(ctx, &wbv1alpha1.IPPoolList{}); !apierrors.IsForbidden(err) {
		t.Errorf("an agent lists all pools: %v", err)
	}

	controller := as("patchbay:controller")
	r := reclaim.New(reclaim.Config{Client: controller, Direct: controller, Namespace: "patchbay-system", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if _, err := r.Reconcile(ctx, reconcile.Request{}); err != nil {
		t.Fatal(err)
	}
	want(t, controller)
}
