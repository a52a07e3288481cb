package vm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/go-logr/logr"

	"patchbay/api/crds"
	"patchbay/internal/qemu"
	"patchbay/test/apiserver"
)

// control is the API server of this package's tests, with the definitions applied.
var control *apiserver.Server

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard()) // controllers log each conflict
	os.Exit(runWithServer(m))
}

func runWithServer(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	s, err := apiserver.Start(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer s.Stop()
	if err := crds.Apply(ctx, s.Config); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	control = s
	if err := addNode(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// theNode is the one that pods are bound to. Its agent lives, and its processor executes guests.
var theNode = corev1.Node{ObjectMeta: metav1.ObjectMeta{
	Name: "node-1", Labels: map[string]string{virtv1.NodeSchedulable: "true", qemu.AcceleratorLabel: string(qemu.KVM)},
}}

func addNode(ctx context.Context) error {
	c, err := client.New(control.Config, client.Options{Scheme: testScheme()})
	if err != nil {
		return err
	}
	return c.Create(ctx, theNode.DeepCopy())
}

func testScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(s), virtv1.AddToScheme(s), nadv1.AddToScheme(s), ipamclaimsv1alpha1.AddToScheme(s)); err != nil {
		panic(err)
	}
	return s
}

// site is one namespace of the API server, with what a kubelet, a scheduler and an agent would do there.
type site struct {
	t         *testing.T
	namespace string
	client    client.Client
	clientset kubernetes.Interface
	// startGuests lets pods run and guests start.
	startGuests atomic.Bool
}

func newSite(t *testing.T, labels map[string]string) *site {
	t.Helper()
	c, err := client.New(control.Config, client.Options{Scheme: testScheme()})
	if err != nil {
		t.Fatal(err)
	}
	clientset, err := kubernetes.NewForConfig(control.Config)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, client: c, clientset: clientset}
	s.startGuests.Store(true)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "site-", Labels: labels}}
	s.create(ns)
	s.namespace = ns.Name
	s.create(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: s.namespace}})
	s.run(control.Config, func(mgr ctrl.Manager) error { return setUpNode(mgr, s) })
	return s
}

func (s *site) create(o client.Object) {
	s.t.Helper()
	if err := s.client.Create(s.t.Context(), o); err != nil {
		s.t.Fatal(err)
	}
}

// run starts a manager and returns what ends it; the end of the test does too.
func (s *site) run(c *rest.Config, setUp func(ctrl.Manager) error, wrap ...func(client.WithWatch) client.Client) (stop func()) {
	s.t.Helper()
	options := ctrl.Options{
		Scheme:     testScheme(),
		Metrics:    server.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: new(true)},
	}
	options.Cache.DefaultNamespaces = map[string]cache.Config{s.namespace: {}}
	if len(wrap) > 0 {
		options.NewClient = func(c *rest.Config, o client.Options) (client.Client, error) {
			inner, err := client.NewWithWatch(c, o)
			if err != nil {
				return nil, err
			}
			return wrap[0](inner), nil
		}
	}
	mgr, err := ctrl.NewManager(c, options)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := setUp(mgr); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := mgr.Start(ctx); err != nil && ctx.Err() == nil {
			s.t.Errorf("manager: %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); done.Wait() })
	s.t.Cleanup(stop)
	return stop
}

// controllers starts the controllers under test.
func (s *site) controllers(wrap ...func(client.WithWatch) client.Client) (stop func()) {
	return s.run(control.Config, func(mgr ctrl.Manager) error {
		return SetupWithManager(mgr, Config{LauncherImage: "patchbay.io/launcher:test"})
	}, wrap...)
}

// setUpNode adds a node's part: pods run at once and end at once, guests too.
func setUpNode(mgr ctrl.Manager, s *site) error {
	pods := reconcile.Func(func(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
		return reconcile.Result{}, ignoreRace(s.stepPod(ctx, r))
	})
	guests := reconcile.Func(func(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
		return reconcile.Result{}, ignoreRace(s.stepGuest(ctx, r))
	})
	return errors.Join(
		ctrl.NewControllerManagedBy(mgr).Named("kubelet").For(&corev1.Pod{}).Complete(pods),
		ctrl.NewControllerManagedBy(mgr).Named("agent").For(&virtv1.VirtualMachineInstance{}).
			Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(ofOwner)).Complete(guests),
	)
}

func (s *site) stepPod(ctx context.Context, r reconcile.Request) error {
	pod := &corev1.Pod{}
	if err := s.client.Get(ctx, r.NamespacedName, pod); err != nil {
		return err
	}
	switch {
	case pod.DeletionTimestamp != nil:
		return s.client.Delete(ctx, pod, client.GracePeriodSeconds(0))
	case !s.startGuests.Load():
		return nil
	case pod.Spec.NodeName == "":
		binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: pod.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: "node-1"}}
		return s.clientset.CoreV1().Pods(pod.Namespace).Bind(ctx, binding, metav1.CreateOptions{})
	case pod.Status.Phase == corev1.PodPending:
		pod.Status.Phase = corev1.PodRunning
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
			Name: "compute", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
		}}
		return s.client.Status().Update(ctx, pod)
	}
	return s.openGate(ctx, pod)
}

// openGate makes a pod ready when its readiness gate is open, as kubelets do.
func (s *site) openGate(ctx context.Context, pod *corev1.Pod) error {
	ready := corev1.ConditionFalse
	for _, c := range pod.Status.Conditions {
		if c.Type == virtv1.VirtualMachineUnpaused {
			ready = c.Status
		}
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	if ready != corev1.ConditionTrue {
		return nil
	}
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: ready})
	return s.client.Status().Update(ctx, pod)
}

func (s *site) stepGuest(ctx context.Context, r reconcile.Request) error {
	vmi := &virtv1.VirtualMachineInstance{}
	if err := s.client.Get(ctx, r.NamespacedName, vmi); err != nil {
		return err
	}
	switch {
	case vmi.DeletionTimestamp != nil && vmi.Status.Phase == virtv1.Running:
		vmi.Status.Phase = virtv1.Succeeded
	case vmi.Status.Phase == virtv1.Scheduled:
		vmi.Status.Phase = virtv1.Running
		vmi.Status.Interfaces = []virtv1.VirtualMachineInstanceNetworkInterface{{Name: "default", IP: "10.128.0.5"}}
	default:
		return nil
	}
	return s.client.Update(ctx, vmi)
}

// ignoreRace forgives what another writer was faster with: its event brings the object back.
func ignoreRace(err error) error {
	if err == nil || client.IgnoreNotFound(err) == nil || strings.Contains(err.Error(), "the object has been modified") ||
		strings.Contains(err.Error(), "already assigned") {
		return nil
	}
	return err
}

const patience = 60 * time.Second

// eventually waits until look finds what is wanted: it returns "" then, and else what it found.
func (s *site) eventually(look func() string) {
	s.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		found := look()
		if found == "" {
			return
		}
		select {
		case <-deadline.C:
			s.t.Fatalf("after %v: %s", patience, found)
		case <-tick.C:
		}
	}
}

func (s *site) vm(name string) *virtv1.VirtualMachine {
	s.t.Helper()
	vm := &virtv1.VirtualMachine{}
	if err := s.client.Get(s.t.Context(), client.ObjectKey{Namespace: s.namespace, Name: name}, vm); err != nil {
		s.t.Fatal(err)
	}
	return vm
}

// shows waits for a printable status.
func (s *site) shows(name string, want virtv1.VirtualMachinePrintableStatus) {
	s.t.Helper()
	s.eventually(func() string {
		if got := s.vm(name).Status.PrintableStatus; got != want {
			return fmt.Sprintf("virtual machine %s is %s, want %s", name, got, want)
		}
		return ""
	})
}

func (s *site) instance(name string) *virtv1.VirtualMachineInstance {
	s.t.Helper()
	vmi := &virtv1.VirtualMachineInstance{}
	if err := s.client.Get(s.t.Context(), client.ObjectKey{Namespace: s.namespace, Name: name}, vmi); client.IgnoreNotFound(err) != nil {
		s.t.Fatal(err)
	} else if err != nil {
		return nil
	}
	return vmi
}

func (s *site) pods() []corev1.Pod {
	s.t.Helper()
	var list corev1.PodList
	if err := s.client.List(s.t.Context(), &list, client.InNamespace(s.namespace)); err != nil {
		s.t.Fatal(err)
	}
	return list.Items
}

// change edits a machine until the edit is taken.
func (s *site) change(name string, status bool, edit func(*virtv1.VirtualMachine)) {
	s.t.Helper()
	s.eventually(func() string {
		vm := s.vm(name)
		edit(vm)
		var err error
		if status {
			err = s.client.Status().Update(s.t.Context(), vm)
		} else {
			err = s.client.Update(s.t.Context(), vm)
		}
		if err != nil {
			return err.Error()
		}
		return ""
	})
}

// requests counts what a client asks of the API server, by verb.
type requests struct {
	mu     sync.Mutex
	counts map[string]int
}

// collections end the path of a list.
var collections = map[string]bool{
	"virtualmachines": true, "virtualmachineinstances": true, "pods": true, "nodes": true,
	"persistentvolumeclaims": true, "controllerrevisions": true,
}

func (r *requests) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		verb := req.Method
		switch last := req.URL.Path[strings.LastIndex(req.URL.Path, "/")+1:]; {
		case req.URL.Query().Has("watch"):
			verb = "WATCH"
		case verb == http.MethodGet && collections[last]:
			verb = "LIST"
		case last == "events":
			verb = "EVENT"
		}
		r.mu.Lock()
		r.counts[verb]++
		r.mu.Unlock()
		return next.RoundTrip(req)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// dying is a client that does a number of writes and then no more, as a process that is killed.
func dying(writes int64) (wrap func(client.WithWatch) client.Client, dead <-chan struct{}) {
	var left atomic.Int64
	left.Store(writes)
	done := make(chan struct{})
	die := sync.OnceFunc(func() { close(done) })
	spend := func() error {
		if left.Add(-1) < 0 {
			die()
			return errors.New("the controller was killed")
		}
		return nil
	}
	return func(c client.WithWatch) client.Client { return interceptor.NewClient(c, mortal(spend)) }, done
}

func mortal(spend func() error) interceptor.Funcs {
	return interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if err := spend(); err != nil {
				return err
			}
			return c.Create(ctx, o, opts...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			if err := spend(); err != nil {
				return err
			}
			return c.Delete(ctx, o, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if err := spend(); err != nil {
				return err
			}
			return c.Patch(ctx, o, p, opts...)
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			if err := spend(); err != nil {
				return err
			}
			return c.SubResource(sub).Patch(ctx, o, p, opts...)
		},
	}
}
