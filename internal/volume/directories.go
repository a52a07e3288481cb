package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

const (
	// parentMode keeps everybody but the kubelet, which mounts single volumes into pods, out of the volumes.
	parentMode = 0o700
	// volumeMode lets a pod of any user write, as users expect of a new volume.
	volumeMode = 0o777
	// stagingSuffix marks a directory that is not yet as it must be.
	stagingSuffix = ".new"
)

// Directories keeps the directories of one node's volumes.
type Directories struct {
	// Client needs to list, watch and patch persistent volumes.
	Client kubernetes.Interface
	// Node is the node's name.
	Node string
	// Dir holds one directory per volume (see Directory).
	Dir string
}

// Start makes and removes directories until ctx ends.
func (d *Directories) Start(ctx context.Context) error {
	if err := os.MkdirAll(d.Dir, parentMode); err != nil {
		return fmt.Errorf("directory of volumes: %w", err)
	}
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
	factory := informers.NewSharedInformerFactoryWithOptions(d.Client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.LabelSelector = NodeLabel + "=" + labelValue(d.Node)
	}))
	informer := factory.Core().V1().PersistentVolumes()
	add := func(o any) {
		if v, ok := o.(*corev1.PersistentVolume); ok {
			queue.Add(v.Name)
		}
	}
	if _, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: add, UpdateFunc: func(_, o any) { add(o) },
	}); err != nil {
		return fmt.Errorf("watch volumes: %w", err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	var worker sync.WaitGroup
	worker.Go(func() { d.work(ctx, queue, informer.Lister().Get) })
	<-ctx.Done()
	queue.ShutDown()
	worker.Wait()
	return nil
}

func (d *Directories) work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[string], get func(string) (*corev1.PersistentVolume, error)) {
	for {
		name, shutdown := queue.Get()
		if shutdown {
			return
		}
		v, err := get(name)
		if err == nil {
			err = d.sync(ctx, v)
		}
		if err == nil || apierrors.IsNotFound(err) {
			queue.Forget(name)
		} else {
			slog.WarnContext(ctx, "volume directory", "volume", name, "error", err)
			queue.AddRateLimited(name)
		}
		queue.Done(name)
	}
}

// sync makes the directory of a volume, or removes it when the volume goes.
func (d *Directories) sync(ctx context.Context, v *corev1.PersistentVolume) error {
	path := filepath.Join(d.Dir, v.Name)
	switch {
	case !isOurs(v):
		return nil
	case v.Spec.Local == nil || v.Spec.Local.Path != path:
		return fmt.Errorf("volume %s claims another path than %s; nothing is touched", v.Name, path)
	case mayClear(v):
		return d.remove(ctx, v, path)
	case v.DeletionTimestamp != nil || v.Status.Phase == corev1.VolumeReleased || v.Status.Phase == corev1.VolumeFailed:
		return nil
	}
	return makeDirectory(path)
}

// makeDirectory makes a directory in one step, so that a crash leaves none with the wrong mode.
func makeDirectory(path string) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	staging := path + stagingSuffix
	if err := os.Mkdir(staging, parentMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(staging, volumeMode); err != nil { // Mkdir's mode is cut by the umask
		return err
	}
	if err := os.Rename(staging, path); err != nil {
		return err
	}
	slog.Info("made volume directory", "path", path)
	return nil
}

// remove deletes the volume's data and then lets its object go.
func (d *Directories) remove(ctx context.Context, v *corev1.PersistentVolume, path string) error {
	for _, p := range []string{path, path + stagingSuffix} {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	finalizers := slices.DeleteFunc(slices.Clone(v.Finalizers), func(f string) bool { return f == Finalizer })
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": v.UID, "resourceVersion": v.ResourceVersion, "finalizers": finalizers,
	}})
	if err != nil {
		return err
	}
	_, err = d.Client.CoreV1().PersistentVolumes().Patch(ctx, v.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		slog.InfoContext(ctx, "removed volume directory", "path", path)
	}
	return err
}
