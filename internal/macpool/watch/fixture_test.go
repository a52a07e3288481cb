package watch_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"patchbay/api/crds"
	"patchbay/internal/admission"
	"patchbay/internal/cluster/bootstrap"
	"patchbay/internal/macpool"
	"patchbay/internal/macpool/assign"
	"patchbay/internal/macpool/watch"
	"patchbay/test/apiserver"
)

const (
	home     = "patchbay-system"
	patience = time.Minute
)

var fixture *apiserver.Server

func TestMain(m *testing.M) { os.Exit(apiserver.Run(m, &fixture)) }

var prepare = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return errors.Join(bootstrap.Apply(ctx, fixture.Config, nil), crds.Apply(ctx, fixture.As(admission.ControllerUser)))
})

// lab is a controller of the pool at work, with the rights of the real one.
type lab struct {
	t     *testing.T
	ctx   context.Context
	c     client.Client // the controller's
	pool  *macpool.Pool
	stop  func()
	ahead atomic.Int64 // of the clock
}

// newLab starts a pool with a range.
func newLab(t *testing.T, start, end string) *lab {
	t.Helper()
	if err := prepare(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	l := &lab{t: t, ctx: ctx}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, virtv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	own := fixture.As(admission.ControllerUser)
	var err error
	if l.c, err = client.New(own, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	_ = l.c.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: home}}) // left by an earlier test
	if start != "" {
		l.setRange(start, end)
	}
	l.start(scheme)
	return l
}

func (l *lab) now() time.Time { return time.Now().Add(time.Duration(l.ahead.Load())) }

// start runs the controllers and the webhooks until stop.
func (l *lab) start(scheme *runtime.Scheme) {
	t := l.t
	own := fixture.As(admission.ControllerUser)
	again := true
	m, err := manager.New(own, manager.Options{Scheme: scheme, Logger: logr.Discard(), Metrics: server.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: &again}})
	if err != nil {
		t.Fatal(err)
	}
	l.pool = macpool.New(macpool.Config{Random: rand.Uint64N})
	w, err := watch.AddToManager(m, watch.Config{Pool: l.pool, Namespace: home, Log: slog.New(slog.DiscardHandler), Now: l.now,
		Webhooks: admission.MACConfiguration, ForVMs: admission.MACForVMs, ForPods: admission.MACForPods})
	if err != nil {
		t.Fatal(err)
	}
	macs := &assign.Assigner{Config: assign.Config{Pool: l.pool, Ready: w.Ready, Off: w.Off, Exists: w.Exists, Now: l.now}}
	hooks := admission.NewServer(admission.Config{Policy: admission.DefaultPolicy, Reader: l.c, MACs: macs})
	ctx, cancel := context.WithCancel(l.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Start(ctx); err != nil {
			t.Error(err)
		}
	}()
	closeWeb := l.serve(hooks)
	l.stop = sync.OnceFunc(func() { cancel(); <-done; closeWeb() })
	t.Cleanup(l.stop)
	if err := hooks.Install(ctx, own, "https://"+apiserver.Address+":9443", fixture.CA.PEM); err != nil {
		t.Fatal(err)
	}
	l.eventually("the webhooks are called", func() bool {
		probe := l.vm("default", "probe", "[{name: pod, masquerade: {}, macAddress: '02:00:00:00:00:01'}]", "[{name: pod, pod: {}}]")
		err := l.c.Create(ctx, probe, client.DryRunAll)
		return err == nil && probe.Annotations[assign.StampAnnotation] != ""
	})
}

func (l *lab) serve(handler http.Handler) (stop func()) {
	issued, err := fixture.CA.Issue("patchbay-controller", nil, apiserver.Address)
	if err != nil {
		l.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(issued.Certificate, issued.Key)
	if err != nil {
		l.t.Fatal(err)
	}
	listener, err := fixture.Listen(apiserver.Address + ":9443")
	if err != nil {
		l.t.Fatal(err)
	}
	web := &http.Server{Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = web.ServeTLS(listener, "", "")
	}()
	return func() { web.Close(); <-done }
}

func (l *lab) setRange(start, end string) {
	l.t.Helper()
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: watch.RangeConfigMap}}
	if err := client.IgnoreNotFound(l.c.Delete(l.ctx, c.DeepCopy())); err != nil {
		l.t.Fatal(err)
	}
	c.Data = map[string]string{watch.RangeStart: start, watch.RangeEnd: end}
	if err := l.c.Create(l.ctx, c); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) eventually(what string, ok func() bool) {
	l.t.Helper()
	deadline := time.Now().Add(patience)
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			l.t.Fatalf("never: %s", what)
		}
		<-poll.C
	}
}

// kubectl fails the test unless the command succeeds.
func (l *lab) kubectl(stdin string, args ...string) string {
	l.t.Helper()
	out, problems, err := fixture.Kubectl(l.ctx, strings.NewReader(stdin), args...)
	if err != nil {
		l.t.Fatalf("kubectl %s: %v %s", strings.Join(args, " "), err, problems)
	}
	return strings.TrimSpace(out)
}

func (l *lab) namespace(name string) string {
	l.t.Helper()
	if err := l.c.Create(l.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		l.t.Fatal(err)
	}
	return name
}

// newLabBeforeRange starts a pool that cannot become ready: nobody has written its range.
func newLabBeforeRange(t *testing.T) *lab {
	t.Helper()
	return newLab(t, "", "")
}
