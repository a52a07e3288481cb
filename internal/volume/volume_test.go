package volume

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files")

const nodesDir = "/var/lib/patchbay/default/nodes"

func testClaim() *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "data", Namespace: "shop", UID: "6a1b7f8c-0a36-44c9-9b39-3f2a9a2e1d10"},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: new(ClassName),
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			},
		},
	}
}

func testNode() *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{corev1.LabelHostname: "node-1"}}}
}

func TestGolden(t *testing.T) {
	volume, err := newVolume(testClaim(), Class(), testNode(), nodesDir)
	if err != nil {
		t.Fatal(err)
	}
	for file, object := range map[string]any{"testdata/class.golden": Class(), "testdata/volume.golden": volume} {
		got, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (run with -update to accept):\n%s", file, diff)
		}
	}
}

func TestUnsupported(t *testing.T) {
	for name, c := range map[string]struct {
		claim func(*corev1.PersistentVolumeClaim)
		class func(*storagev1.StorageClass)
		node  func(*corev1.Node)
		want  string
	}{
		"block":     {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = new(corev1.PersistentVolumeBlock) }, want: "use Filesystem"},
		"many":      {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteMany }, want: "use ReadWriteOnce"},
		"selector":  {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} }, want: "remove spec.selector"},
		"source":    {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource = &corev1.TypedLocalObjectReference{} }, want: "remove spec.dataSource"},
		"immediate": {class: func(c *storagev1.StorageClass) { c.VolumeBindingMode = new(storagev1.VolumeBindingImmediate) }, want: "must have volumeBindingMode WaitForFirstConsumer"},
		"hostname":  {node: func(n *corev1.Node) { n.Labels = nil }, want: "no label kubernetes.io/hostname"},
	} {
		t.Run(name, func(t *testing.T) {
			claim, class, node := testClaim(), Class(), testNode()
			if c.claim != nil {
				c.claim(claim)
			}
			if c.class != nil {
				c.class(class)
			}
			if c.node != nil {
				c.node(node)
			}
			if _, err := newVolume(claim, class, node, nodesDir); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestLabelValue(t *testing.T) {
	long := strings.Repeat("node.", 30) + "example"
	for _, node := range []string{"node-1", long} {
		if errs := validation.IsValidLabelValue(labelValue(node)); len(errs) > 0 {
			t.Errorf("labelValue(%q) = %q: %v", node, labelValue(node), errs)
		}
	}
	if labelValue(long) == labelValue(long+"s") {
		t.Error("two nodes share a label value")
	}
}
