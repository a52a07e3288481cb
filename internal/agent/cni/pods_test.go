package cni

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllertest"

	"patchbay/internal/agent/cni/shim"
	"patchbay/internal/podnetworks"
)

const networksJSON = `{"default":{"ip_addresses":["10.128.0.5/23"],"mac_address":"0a:58:0a:80:00:05","role":"primary"}}`

// apiLab is an API server (a fake client) with a cache whose events the test sends.
type apiLab struct {
	*KubePods
	api    client.Client
	events *controllertest.FakeInformer
}

// labCache reads from the fake client, so that the test decides when an event tells of a change.
type labCache struct {
	*informertest.FakeInformers
	client.Reader
}

func (c labCache) Get(ctx context.Context, k client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	return c.Reader.Get(ctx, k, o, opts...)
}

func (c labCache) List(ctx context.Context, l client.ObjectList, opts ...client.ListOption) error {
	return c.Reader.List(ctx, l, opts...)
}

func newAPILab(t *testing.T, objects ...client.Object) *apiLab {
	t.Helper()
	api := fake.NewClientBuilder().WithScheme(clientgoscheme.Scheme).WithObjects(objects...).WithStatusSubresource(&corev1.Pod{}).Build()
	informers := &informertest.FakeInformers{Scheme: clientgoscheme.Scheme,
		InformersByGVK: nil}
	pods, err := NewKubePods(context.Background(), labCache{informers, api}, api, api)
	if err != nil {
		t.Fatal(err)
	}
	events, err := informers.FakeInformerForKind(context.Background(), schema.GroupVersionKind{Version: "v1", Kind: "Pod"})
	if err != nil {
		t.Fatal(err)
	}
	return &apiLab{pods, api, events}
}

func pod(uid types.UID, annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "web", UID: uid, Annotations: annotations}}
}

var ref = PodRef{"red", "web", "u1"}

func TestNetworksWaitsForTheAnnotation(t *testing.T) {
	lab := newAPILab(t, pod("u1", nil))
	type answer struct {
		Wanted
		err error
	}
	got := make(chan answer)
	go func() {
		w, err := lab.Networks(context.Background(), ref)
		got <- answer{w, err}
	}()
	annotated := pod("u1", map[string]string{podnetworks.PodAnnotation: networksJSON})
	if err := lab.api.Update(context.Background(), annotated); err != nil {
		t.Fatal(err)
	}
	lab.events.Update(annotated, annotated)
	a := <-got
	if a.err != nil || a.Given["default"].IPs[0].String() != "10.128.0.5/23" {
		t.Errorf("got %+v", a)
	}
}

func TestNetworksFillsInTheUID(t *testing.T) {
	lab := newAPILab(t, pod("u1", map[string]string{podnetworks.PodAnnotation: networksJSON}))
	got, err := lab.Networks(context.Background(), PodRef{"red", "web", ""})
	if err != nil || got.Pod.UID != "u1" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestNetworksGivesUp(t *testing.T) {
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := newAPILab(t, pod("u1", nil)).Networks(short, ref)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "is patchbay controller running?") {
		t.Errorf("without an annotation: %v", err)
	}
	for name, lab := range map[string]*apiLab{"no pod": newAPILab(t), "successor": newAPILab(t, pod("u2", map[string]string{podnetworks.PodAnnotation: networksJSON}))} {
		_, err := lab.Networks(context.Background(), ref)
		var coded *shim.Error
		if !errors.As(err, &coded) || coded.Code != shim.CodeUnknownContainer {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = newAPILab(t, pod("u1", map[string]string{podnetworks.PodAnnotation: "{"})).Networks(context.Background(), ref)
	if err == nil || !strings.Contains(err.Error(), podnetworks.PodAnnotation) {
		t.Errorf("broken annotation: %v", err)
	}
}

func TestNetworksWaitsForEachKey(t *testing.T) {
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	lab := newAPILab(t, pod("u1", map[string]string{podnetworks.PodAnnotation: networksJSON}))
	_, err := lab.Networks(short, ref, "red/blue")
	if err == nil || !strings.Contains(err.Error(), "no entry for default or red/blue") {
		t.Errorf("got %v", err)
	}
}

func TestWhileEndsWithThePod(t *testing.T) {
	lab := newAPILab(t, pod("u1", nil))
	alive, cancel := lab.While(context.Background(), ref)
	defer cancel()
	lab.events.Update(pod("u1", nil), pod("u1", nil))
	if alive.Err() != nil {
		t.Fatal("ended while the pod exists")
	}
	if err := lab.api.Delete(context.Background(), pod("u1", nil)); err != nil {
		t.Fatal(err)
	}
	lab.events.Delete(pod("u1", nil))
	<-alive.Done()
	if cause := context.Cause(alive); !errors.Is(cause, errDeleted) {
		t.Errorf("ended because of %v", cause)
	}
}

// The fake client does not write annotations through the status subresource, as the API server does, so the patch itself is
// looked at.
func TestAnnotate(t *testing.T) {
	var subresource, patch string
	api := fake.NewClientBuilder().WithScheme(clientgoscheme.Scheme).WithInterceptorFuncs(interceptor.Funcs{
		SubResourcePatch: func(_ context.Context, _ client.Client, name string, o client.Object, p client.Patch, _ ...client.SubResourcePatchOption) error {
			data, err := p.Data(o)
			subresource, patch = name, string(p.Type())+" "+string(data)
			return err
		},
	}).Build()
	k := &KubePods{writer: api}
	if err := k.Annotate(context.Background(), ref, nadv1.NetworkStatusAnnot, "[]"); err != nil {
		t.Fatal(err)
	}
	want := `application/merge-patch+json {"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":"[]"},"uid":"u1"}}`
	if subresource != "status" || patch != want {
		t.Errorf("patched %s with %s\nwant %s", subresource, patch, want)
	}
}
