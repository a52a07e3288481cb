package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"patchbay/test/apiserver"
)

var control *apiserver.Server

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())
	os.Exit(apiserver.Run(m, &control))
}

const patience = 60 * time.Second

func eventually(t *testing.T, look func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := look()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("after %v: %v", patience, err)
		case <-tick.C:
		}
	}
}

// start runs the provisioner and the directories of node-1 and returns a client and the directory of all nodes.
func start(t *testing.T) (client.Client, string) {
	t.Helper()
	nodes := t.TempDir()
	mgr, err := ctrl.NewManager(control.Config, ctrl.Options{
		Scheme: scheme.Scheme, Metrics: server.Options{BindAddress: "0"}, Controller: config.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := SetupWithManager(mgr, Config{NodesDir: nodes}); err != nil {
		t.Fatal(err)
	}
	clientset, err := kubernetes.NewForConfig(control.Config)
	if err != nil {
		t.Fatal(err)
	}
	directories := &Directories{Client: clientset, Node: "node-1", Dir: Directory(nodes, "node-1")}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{mgr.Start, directories.Start} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); running.Wait() })
	c, err := client.New(control.Config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c, nodes
}

// TestVolumeOfAClaim follows a claim from the scheduler's choice of a node to its deletion. The test plays Kubernetes' own volume
// controllers.
func TestVolumeOfAClaim(t *testing.T) {
	c, nodes := start(t)
	ctx := t.Context()
	eventually(t, func() error { return c.Get(ctx, client.ObjectKey{Name: ClassName}, &storagev1.StorageClass{}) })
	for _, name := range []string{"node-1", "node-2"} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
		if err := c.Create(ctx, node); err != nil {
			t.Fatal(err)
		}
	}
	kept := claimAndVolume(t, c, "kept", "node-1")
	path := filepath.Join(Directory(nodes, "node-1"), kept.Name)
	if kept.Spec.Local.Path != path {
		t.Errorf("path %s, want %s", kept.Spec.Local.Path, path)
	}
	eventually(t, func() error { _, err := os.Stat(path); return err })
	if err := os.WriteFile(filepath.Join(path, "disk.img"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}

	release(t, c, kept)
	eventually(t, func() error { return isGone(ctx, c, kept) })
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}

	// A volume of a node that has no agent any more is let go when the node is.
	lost := claimAndVolume(t, c, "lost", "node-2")
	release(t, c, lost)
	eventually(t, func() error {
		if err := c.Get(ctx, client.ObjectKeyFromObject(lost), lost); err != nil || lost.DeletionTimestamp == nil {
			return fmt.Errorf("the volume is not being deleted: %v", err)
		}
		return nil
	})
	if err := c.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-2"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return isGone(ctx, c, lost) })
}

func isGone(ctx context.Context, c client.Client, v *corev1.PersistentVolume) error {
	err := c.Get(ctx, client.ObjectKeyFromObject(v), &corev1.PersistentVolume{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("volume %s is still there (%w)", v.Name, err)
}

// claimAndVolume makes a claim for which the scheduler chose a node and waits for its volume.
func claimAndVolume(t *testing.T, c client.Client, name, node string) *corev1.PersistentVolume {
	t.Helper()
	claim := testClaim()
	claim.Namespace, claim.Name, claim.UID = "default", name, ""
	claim.Annotations = map[string]string{provisionerAnnotation: ProvisionerName, selectedNodeAnnotation: node}
	if err := c.Create(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	v := &corev1.PersistentVolume{}
	eventually(t, func() error { return c.Get(t.Context(), client.ObjectKey{Name: "pvc-" + string(claim.UID)}, v) })
	return v
}

// release does what Kubernetes does when a claim is deleted: the volume is released, and protected no longer.
func release(t *testing.T, c client.Client, v *corev1.PersistentVolume) {
	t.Helper()
	eventually(t, func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(v), v); err != nil {
			return err
		}
		controllerutil.RemoveFinalizer(v, protectionFinalizer)
		return c.Update(t.Context(), v)
	})
	eventually(t, func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(v), v); err != nil {
			return err
		}
		v.Status.Phase = corev1.VolumeReleased
		return c.Status().Update(t.Context(), v)
	})
}

func TestRefusedClaimSaysWhy(t *testing.T) {
	c, _ := start(t)
	claim := testClaim()
	claim.Namespace, claim.Name, claim.UID = "default", "shared", ""
	claim.Annotations = map[string]string{provisionerAnnotation: ProvisionerName}
	claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	if err := c.Create(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		var list corev1.EventList
		if err := c.List(t.Context(), &list, client.InNamespace("default")); err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.InvolvedObject.Name == "shared" && e.Reason == reasonFailed {
				return nil
			}
		}
		return errors.New("no event tells why the claim was refused")
	})
}
