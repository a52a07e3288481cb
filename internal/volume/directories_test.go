package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// onDisk is a volume of ours below dir.
func onDisk(t *testing.T, dir string) *corev1.PersistentVolume {
	t.Helper()
	v, err := newVolume(testClaim(), Class(), testNode(), nodesDir)
	if err != nil {
		t.Fatal(err)
	}
	v.Spec.Local.Path = filepath.Join(dir, v.Name)
	return v
}

func TestSyncMakesAWritableDirectoryOnce(t *testing.T) {
	dir := t.TempDir()
	v := onDisk(t, dir)
	d := &Directories{Client: fake.NewClientset(v), Node: "node-1", Dir: dir}
	// A crash left the staging directory behind.
	if err := os.Mkdir(v.Spec.Local.Path+stagingSuffix, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.sync(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(v.Spec.Local.Path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != volumeMode {
		t.Errorf("mode %o, want %o", got, volumeMode)
	}
	// What the kubelet or a pod changes afterwards stays.
	if err := os.Chmod(v.Spec.Local.Path, 0o770); err != nil {
		t.Fatal(err)
	}
	if err := d.sync(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(v.Spec.Local.Path); info.Mode().Perm() != 0o770 {
		t.Errorf("mode %o was changed back", info.Mode().Perm())
	}
}

func TestSyncTouchesOnlyItsOwn(t *testing.T) {
	deleted := &metav1.Time{}
	for name, c := range map[string]struct {
		change func(*corev1.PersistentVolume)
		exists bool
		err    string
	}{
		"foreign":      {change: func(v *corev1.PersistentVolume) { v.Annotations = nil }},
		"another path": {change: func(v *corev1.PersistentVolume) { v.Spec.Local.Path = "/etc" }, err: "nothing is touched"},
		"released":     {change: func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeReleased }},
		"deleted but in use": {change: func(v *corev1.PersistentVolume) {
			v.DeletionTimestamp = deleted
			v.Finalizers = append(v.Finalizers, protectionFinalizer)
		}},
		"bound": {change: func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeBound }, exists: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			v := onDisk(t, dir)
			path := v.Spec.Local.Path
			c.change(v)
			err := (&Directories{Client: fake.NewClientset(), Node: "node-1", Dir: dir}).sync(t.Context(), v)
			if (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if _, err := os.Stat(path); (err == nil) != c.exists {
				t.Errorf("directory exists: %v, want %v", err == nil, c.exists)
			}
		})
	}
}
