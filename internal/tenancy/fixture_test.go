package tenancy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"patchbay/api/crds"
	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/cluster/bootstrap"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
	"patchbay/test/apiserver"
)

// control is the API server of this package's tests.
var control *apiserver.Server

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard()) // controllers log each conflict
	os.Exit(apiserver.Run(m, &control))
}

// prepare makes the API server one that a controller finds.
var prepare = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return errors.Join(bootstrap.Apply(ctx, control.Config, nil), crds.Apply(ctx, control.Config))
})

func testScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(s), nadv1.AddToScheme(s), ovnv1.AddToScheme(s), virtv1.AddToScheme(s), ipamclaimsv1alpha1.AddToScheme(s)); err != nil {
		t.Fatal(err)
	}
	return s
}

// site is the API server with the controllers running on it.
type site struct {
	t       *testing.T
	client  client.Client
	tenancy *Tenancy
	carried sync.Map // networks that the overlay does not let go
	kill    func()   // ends the controllers, as kill -9 would
}

func newSite(t *testing.T) *site {
	t.Helper()
	if err := prepare(); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(control.Config, client.Options{Scheme: testScheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, client: c}
	s.start()
	t.Cleanup(s.clear)
	return s
}

// start runs the controllers with the rights of the real one.
func (s *site) start() {
	s.t.Helper()
	yes := true
	m, err := manager.New(control.As("patchbay:controller"), manager.Options{
		Scheme: testScheme(s.t), Metrics: server.Options{BindAddress: "0"}, Controller: config.Controller{SkipNameValidation: &yes},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if s.tenancy, err = AddToManager(m, Config{Settings: settings.Default(), Running: s.running}); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Start(ctx) }()
	s.kill = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("the manager ended: %v", err)
		}
	})
}

func (s *site) running(network string) bool {
	_, carried := s.carried.Load(network)
	return carried
}

// clear removes what the test left; nothing may hold it.
func (s *site) clear() {
	s.kill()
	ctx := context.Background()
	var udns ovnv1.UserDefinedNetworkList
	var cudns ovnv1.ClusterUserDefinedNetworkList
	var nads nadv1.NetworkAttachmentDefinitionList
	if err := errors.Join(s.client.List(ctx, &udns), s.client.List(ctx, &cudns), s.client.List(ctx, &nads)); err != nil {
		s.t.Fatal(err)
	}
	var claims ipamclaimsv1alpha1.IPAMClaimList
	var vmis virtv1.VirtualMachineInstanceList
	var vms virtv1.VirtualMachineList
	if err := errors.Join(s.client.List(ctx, &claims), s.client.List(ctx, &vmis), s.client.List(ctx, &vms)); err != nil {
		s.t.Fatal(err)
	}
	var all []client.Object
	for i := range vms.Items {
		all = append(all, &vms.Items[i])
	}
	for i := range vmis.Items {
		all = append(all, &vmis.Items[i])
	}
	for i := range claims.Items {
		all = append(all, &claims.Items[i])
	}
	for i := range udns.Items {
		all = append(all, &udns.Items[i])
	}
	for i := range cudns.Items {
		all = append(all, &cudns.Items[i])
	}
	for i := range nads.Items {
		all = append(all, &nads.Items[i])
	}
	for _, o := range all {
		o.SetFinalizers(nil)
		if err := errors.Join(s.client.Update(ctx, o), client.IgnoreNotFound(s.client.Delete(ctx, o))); err != nil {
			s.t.Error(err)
		}
	}
}

func (s *site) create(o client.Object) {
	s.t.Helper()
	if err := s.client.Create(s.t.Context(), o); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) delete(o client.Object) {
	s.t.Helper()
	if err := s.client.Delete(s.t.Context(), o, client.GracePeriodSeconds(0)); err != nil {
		s.t.Fatal(err)
	}
}

// change edits an object as it is now.
func change[T client.Object](s *site, o T, edit func(T)) {
	s.t.Helper()
	s.until("the object can be written", func() error {
		if err := s.client.Get(s.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			return err
		}
		edit(o)
		return s.client.Update(s.t.Context(), o)
	})
}

// until waits for what some watch will bring about.
func (s *site) until(what string, holds func() error) {
	s.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// namespace makes one; with labels "key", or "key=value" as pairs.
func (s *site) namespace(labels map[string]string) string {
	s.t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "tenant-", Labels: labels}}
	s.create(ns)
	s.create(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: ns.Name}})
	s.t.Cleanup(func() { _ = s.client.Delete(context.Background(), ns) })
	return ns.Name
}

// primary are the labels of a namespace with a primary network.
func primary(more ...string) map[string]string {
	labels := map[string]string{ovnv1.PrimaryNamespaceLabel: ""}
	for i := 0; i+1 < len(more); i += 2 {
		labels[more[i]] = more[i+1]
	}
	return labels
}

func layer2(role ovnv1.Role, subnets ...ovnv1.CIDR) *ovnv1.Layer2Config {
	return &ovnv1.Layer2Config{Role: role, Subnets: subnets, IPAM: &ovnv1.IPAMConfig{Lifecycle: ovnv1.IPAMPersistent}}
}

func udn(namespace, name string, c *ovnv1.Layer2Config) *ovnv1.UserDefinedNetwork {
	return &ovnv1.UserDefinedNetwork{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       ovnv1.UserDefinedNetworkSpec{Topology: ovnv1.Layer2, Layer2: c},
	}
}

func cudn(name string, selector metav1.LabelSelector, c *ovnv1.Layer2Config) *ovnv1.ClusterUserDefinedNetwork {
	return &ovnv1.ClusterUserDefinedNetwork{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: ovnv1.ClusterUserDefinedNetworkSpec{
			NamespaceSelector: selector, Network: ovnv1.NetworkSpec{Topology: ovnv1.Layer2, Layer2: c},
		},
	}
}

func tenants(value string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"tenant": value}}
}

// pod makes a pod that uses a definition, as its annotation says.
func (s *site) pod(namespace, name, definition string) *corev1.Pod {
	s.t.Helper()
	networks := map[string]podnetworks.Network{namespace + "/" + definition: {MAC: []byte{2, 0, 0, 0, 0, 1}, Role: podnetworks.Primary}}
	text, err := podnetworks.FormatPod(networks)
	if err != nil {
		s.t.Fatal(err)
	}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{podnetworks.PodAnnotation: text}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
	s.create(p)
	return p
}

// says waits until a condition of a network says what is wanted: "STATUS REASON MESSAGE".
func (s *site) says(o client.Object, kind, want string) {
	s.t.Helper()
	s.until(fmt.Sprintf("%s of %s", kind, o.GetName()), func() error {
		if err := s.client.Get(s.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			return err
		}
		c := meta.FindStatusCondition(conditions(o), kind)
		if c == nil {
			return errors.New("no such condition")
		}
		if got := fmt.Sprintf("%s %s %s", c.Status, c.Reason, c.Message); got != want {
			return fmt.Errorf("says %q, want %q", got, want)
		}
		return nil
	})
}

func conditions(o client.Object) []metav1.Condition {
	switch n := o.(type) {
	case *ovnv1.UserDefinedNetwork:
		return n.Status.Conditions
	case *ovnv1.ClusterUserDefinedNetwork:
		return n.Status.Conditions
	}
	return nil
}

// definition waits for a definition.
func (s *site) definition(namespace, name string) *nadv1.NetworkAttachmentDefinition {
	s.t.Helper()
	d := &nadv1.NetworkAttachmentDefinition{}
	s.until("definition "+namespace+"/"+name, func() error {
		return s.client.Get(s.t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, d)
	})
	return d
}

// gone waits until an object does not exist.
func (s *site) gone(o client.Object) {
	s.t.Helper()
	s.until(fmt.Sprintf("%T %s is gone", o, client.ObjectKeyFromObject(o)), func() error {
		err := s.client.Get(s.t.Context(), client.ObjectKeyFromObject(o), o)
		if err == nil {
			return fmt.Errorf("still there: finalizers %v", o.GetFinalizers())
		}
		return client.IgnoreNotFound(err)
	})
}

func named(namespace, name string) *nadv1.NetworkAttachmentDefinition {
	return &nadv1.NetworkAttachmentDefinition{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// finalize does what the namespace controller does in the end.
func (s *site) finalize(namespace string) {
	s.t.Helper()
	set, err := kubernetes.NewForConfig(control.Config)
	if err != nil {
		s.t.Fatal(err)
	}
	ns, err := set.CoreV1().Namespaces().Get(s.t.Context(), namespace, metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	ns.Spec.Finalizers = nil
	if _, err := set.CoreV1().Namespaces().Finalize(s.t.Context(), ns, metav1.UpdateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}
