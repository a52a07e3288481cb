package requeue

import (
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

func TestWakeBeforeAndAfterTheStart(t *testing.T) {
	var w Wakeups
	w.Wake(client.ObjectKey{Name: "early"})
	q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	defer q.ShutDown()
	if err := w.Source().Start(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	w.Wake()
	w.Wake(client.ObjectKey{Namespace: "red", Name: "a"}, client.ObjectKey{Name: "b"})
	if q.Len() != 2 {
		t.Fatalf("%d keys are queued, want the two given after the start", q.Len())
	}
	if first, _ := q.Get(); first.String() != "red/a" {
		t.Errorf("the first key is %s", first)
	}
}

func TestOne(t *testing.T) {
	q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	defer q.ShutDown()
	all := reconcile.Request{NamespacedName: client.ObjectKey{Name: "all"}}
	events := One(all)
	for _, name := range []string{"a", "b"} {
		events.Create(t.Context(), event.CreateEvent{Object: &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}}, q)
	}
	if got, _ := q.Get(); got != all || q.Len() != 0 {
		t.Errorf("%s is asked for, and %d others", got, q.Len())
	}
}

func TestEvery(t *testing.T) {
	c := fake.NewClientBuilder().WithObjects(
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "a"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "blue", Name: "b"}},
	).Build()
	var got []string
	for _, r := range Every(c, &corev1.ConfigMapList{}, slog.New(slog.DiscardHandler))(t.Context(), nil) {
		got = append(got, r.String())
	}
	if diff := cmp.Diff([]string{"blue/b", "red/a"}, got); diff != "" {
		t.Error(diff)
	}
}
