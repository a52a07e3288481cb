package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/agent/cni/shim"
	"patchbay/internal/podnetworks"
)

// KubePods is Pods on the Kubernetes API.
type KubePods struct {
	cache  client.Reader // this node's pods
	direct client.Reader // the API server itself
	writer client.Client

	mu      sync.Mutex
	waiters map[types.NamespacedName]chan struct{}
}

// cacheLag is how far the cache is allowed to be behind kubelet before the API server is asked.
const cacheLag = time.Second

// NewKubePods watches the pods in the cache, which must be limited to this node's.
func NewKubePods(ctx context.Context, c cache.Cache, direct client.Reader, writer client.Client) (*KubePods, error) {
	k := &KubePods{cache: c, direct: direct, writer: writer, waiters: map[types.NamespacedName]chan struct{}{}}
	informer, err := c.GetInformer(ctx, &corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("watch this node's pods: %w", err)
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    k.notify,
		UpdateFunc: func(_, pod any) { k.notify(pod) },
		DeleteFunc: k.notify,
	})
	if err != nil {
		return nil, fmt.Errorf("watch this node's pods: %w", err)
	}
	return k, nil
}

func (k *KubePods) notify(object any) {
	if gone, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	key := client.ObjectKeyFromObject(pod)
	if waiter, ok := k.waiters[key]; ok {
		close(waiter)
		delete(k.waiters, key)
	}
}

// changed returns a channel that is closed at the pod's next change.
func (k *KubePods) changed(key types.NamespacedName) <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	waiter, ok := k.waiters[key]
	if !ok {
		waiter = make(chan struct{})
		k.waiters[key] = waiter
	}
	return waiter
}

// Networks waits for the annotation that the network controller writes, until it has an entry for each of the keys.
func (k *KubePods) Networks(ctx context.Context, ref PodRef, keys ...string) (Wanted, error) {
	key := types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}
	lag := time.NewTimer(cacheLag)
	defer lag.Stop()
	mayAsk := false
	for {
		changed := k.changed(key)
		w, known, err := k.Now(ctx, ref)
		if err != nil {
			return w, err
		}
		if known && w.complete(keys) {
			return w, nil
		}
		if !known && mayAsk {
			if err := k.confirm(ctx, ref); err != nil {
				return w, err
			}
		}
		select {
		case <-changed:
		case <-lag.C:
			mayAsk = true
		case <-ctx.Done():
			return w, fmt.Errorf("%s; is patchbay controller running? Its events on the pod say why it gave no addresses: %w", w.missing(keys), context.Cause(ctx))
		}
	}
}

// Now is what the cache says of the pod. A pod of the same name may still be, or be already, its predecessor or successor: then it is
// not known.
func (k *KubePods) Now(ctx context.Context, ref PodRef) (w Wanted, known bool, err error) {
	w.Pod = ref
	var pod corev1.Pod
	err = k.cache.Get(ctx, types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, &pod)
	if apierrors.IsNotFound(err) || err == nil && ref.UID != "" && pod.UID != ref.UID {
		return w, false, nil
	}
	if err != nil {
		return w, false, err
	}
	w.Pod.UID = pod.UID
	if w.Given, err = podnetworks.ParsePod(pod.Annotations); err != nil {
		return w, true, err
	}
	if w.Default, err = ParseDefault(pod.Annotations); err != nil {
		return w, true, err
	}
	w.Selections, err = ParseSelections(pod.Annotations, pod.Namespace)
	return w, true, err
}

func (w Wanted) complete(keys []string) bool {
	for _, key := range append([]string{podnetworks.Default}, keys...) {
		if _, ok := w.Given[key]; !ok {
			return false
		}
	}
	return true
}

func (w Wanted) missing(keys []string) string {
	if len(w.Given) == 0 {
		return fmt.Sprintf("annotation %s is missing", podnetworks.PodAnnotation)
	}
	return fmt.Sprintf("annotation %s has no entry for %s", podnetworks.PodAnnotation, strings.Join(append([]string{podnetworks.Default}, keys...), " or "))
}

// confirm asks the API server whether the pod exists.
func (k *KubePods) confirm(ctx context.Context, ref PodRef) error {
	var pod corev1.Pod
	err := k.direct.Get(ctx, types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, &pod)
	if apierrors.IsNotFound(err) || err == nil && ref.UID != "" && pod.UID != ref.UID {
		return &shim.Error{Code: shim.CodeUnknownContainer, Msg: fmt.Sprintf("pod %s with UID %s exists no more", ref, ref.UID)}
	}
	return err
}

var errDeleted = errors.New("the pod was deleted meanwhile")

// While returns a context that ends when the pod's deletion is seen.
func (k *KubePods) While(ctx context.Context, ref PodRef) (context.Context, context.CancelFunc) {
	alive, cancel := context.WithCancelCause(ctx)
	key := types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			changed := k.changed(key)
			var pod corev1.Pod
			if err := k.cache.Get(alive, key, &pod); apierrors.IsNotFound(err) || err == nil && pod.UID != ref.UID {
				cancel(errDeleted)
				return
			}
			select {
			case <-changed:
			case <-alive.Done():
				return
			}
		}
	})
	return alive, func() { cancel(nil); watching.Wait() }
}

// Annotate goes through the status subresource, which is all that the agent may write of a pod. The UID keeps it off a
// successor of the same name.
func (k *KubePods) Annotate(ctx context.Context, ref PodRef, key, value string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": ref.UID, "annotations": map[string]string{key: value}}})
	if err != nil {
		return err
	}
	pod := &corev1.Pod{}
	pod.Namespace, pod.Name = ref.Namespace, ref.Name
	if err := k.writer.Status().Patch(ctx, pod, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("write annotation %s: %w", key, err)
	}
	return nil
}
