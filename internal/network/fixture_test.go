package network

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	multiv1beta1 "github.com/k8snetworkplumbingwg/multi-networkpolicy/pkg/apis/k8s.cni.cncf.io/v1beta1"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"patchbay/api/crds"
	"patchbay/internal/ovn"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
	"patchbay/test/apiserver"
)

// control is the API server of this package's tests.
var control *apiserver.Server

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())
	os.Exit(apiserver.Run(m, &control))
}

// scheme holds every type of these tests.
var scheme = sync.OnceValue(func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, virtv1.AddToScheme, nadv1.AddToScheme, ipamclaimsv1alpha1.AddToScheme, multiv1beta1.AddToScheme} {
		_ = add(s)
	}
	return s
})

// definitions makes the API server know the types that are not Kubernetes' own, once.
var definitions = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return crds.Apply(ctx, control.Config)
})

// site is the API server with what a scheduler and a kubelet would do, emptied when the test ends.
type site struct {
	t      *testing.T
	client client.Client
	last   *Network // the controllers that were started last
}

func newSite(t *testing.T) *site {
	t.Helper()
	if err := definitions(); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(control.Config, client.Options{Scheme: scheme()})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, client: c}
	t.Cleanup(s.clear)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}}
	if err := c.Create(t.Context(), account); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) clear() {
	ctx := context.Background()
	_ = s.client.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace("default"), client.GracePeriodSeconds(0))
	_ = s.client.DeleteAllOf(ctx, &corev1.Node{})
	_ = s.client.Delete(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: ledgerName}})
}

func (s *site) create(objects ...client.Object) {
	s.t.Helper()
	for _, o := range objects {
		if err := s.client.Create(s.t.Context(), o); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *site) delete(object client.Object) {
	s.t.Helper()
	if err := s.client.Delete(s.t.Context(), object, client.GracePeriodSeconds(0)); err != nil {
		s.t.Fatal(err)
	}
}

func node(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }

func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
}

// overlay is a database that a store fills, and what was done to the southbound one.
type overlay struct {
	fake    *ovn.Fake
	mu      sync.Mutex
	removed []string
}

func (o *overlay) RemoveChassis(_ context.Context, node string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.removed = append(o.removed, node)
	return nil
}

func (o *overlay) chassisRemoved(node string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Contains(o.removed, node)
}

// start runs the controllers as a process would, until the returned function or the test's end kills it.
func (s *site) start(o *overlay, with settings.Settings) (kill func()) {
	s.t.Helper()
	quiet := slog.New(slog.NewTextHandler(s.t.Output(), nil))
	yes := true
	m, err := manager.New(control.Config, manager.Options{
		Scheme: scheme(), Metrics: server.Options{BindAddress: "0"}, Controller: config.Controller{SkipNameValidation: &yes},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	store := ovn.NewStore(ovn.Config{Dial: o.fake.Dial, Interval: time.Millisecond, Log: quiet})
	n, err := AddToManager(m, Config{Settings: with, Rows: store, Chassis: o, Log: quiet})
	if err != nil {
		s.t.Fatal(err)
	}
	s.last = n
	if err := m.Add(manager.RunnableFunc(store.Run)); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Start(ctx) }()
	kill = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("the manager ended: %v", err)
		}
	})
	s.t.Cleanup(kill)
	return kill
}

// until waits for a condition that some watch will bring about, and says what is wrong when it does not come.
func (s *site) until(what string, holds func() (bool, string)) {
	s.t.Helper()
	deadline := time.Now().Add(2 * time.Minute) // the API server gives a deleted Service's addresses back a minute later
	for {
		ok, detail := holds()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: %s", what, detail)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// subnets waits for a node's slices.
func (s *site) subnets(name string) string {
	s.t.Helper()
	var n corev1.Node
	s.until("node "+name+" has subnets", func() (bool, string) {
		err := s.client.Get(s.t.Context(), client.ObjectKey{Name: name}, &n)
		return err == nil && n.Annotations[podnetworks.NodeAnnotation] != "", fmt.Sprint(err, n.Annotations)
	})
	return n.Annotations[podnetworks.NodeAnnotation]
}

// network waits for a pod's annotation.
func (s *site) network(name string) podnetworks.Network {
	s.t.Helper()
	var network podnetworks.Network
	s.until("pod "+name+" has addresses", func() (bool, string) {
		var p corev1.Pod
		if err := s.client.Get(s.t.Context(), client.ObjectKey{Namespace: "default", Name: name}, &p); err != nil {
			return false, err.Error()
		}
		networks, err := podnetworks.ParsePod(p.Annotations)
		found := false
		network, found = networks[podnetworks.Default]
		return found, fmt.Sprint(err, p.Annotations)
	})
	return network
}

// hasRow waits until the database holds a row, or does not.
func (s *site) hasRow(o *overlay, row string, want bool) {
	s.t.Helper()
	s.until(fmt.Sprintf("row %q exists: %v", row, want), func() (bool, string) {
		dump := o.fake.Dump()
		return strings.Contains("\n"+dump, "\n"+row+"\n") == want, dump
	})
}
