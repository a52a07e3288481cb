// Package volume makes persistent volume claims just work: a claim of the class local-path gets a directory on the node that the
// scheduler chose for its first pod. The controller makes and deletes the PersistentVolume objects (Provisioner), the node's
// agent the directories (Directories); neither needs a helper pod. A directory's size is not limited, and its volume stays on
// its node.
package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// ClassName is the storage class of the local cluster, its default.
	ClassName = "local-path"
	// ProvisionerName is how storage classes name this package.
	ProvisionerName = "patchbay.io/local-path"
	// Finalizer keeps a volume's object until its directory is gone.
	Finalizer = "patchbay.io/local-volume"
	// NodeLabel says on a volume which node it is on, so that agents watch only their own.
	NodeLabel = "patchbay.io/node"
)

// Annotations that Kubernetes defines.
const (
	defaultClassAnnotation  = "storageclass.kubernetes.io/is-default-class"
	provisionedByAnnotation = "pv.kubernetes.io/provisioned-by"
	selectedNodeAnnotation  = "volume.kubernetes.io/selected-node"
	provisionerAnnotation   = "volume.kubernetes.io/storage-provisioner"
	protectionFinalizer     = "kubernetes.io/pv-protection"
)

// Class is the storage class local-path.
func Class() *storagev1.StorageClass {
	return &storagev1.StorageClass{
		TypeMeta: metav1.TypeMeta{APIVersion: storagev1.SchemeGroupVersion.String(), Kind: "StorageClass"},
		ObjectMeta: metav1.ObjectMeta{
			Name:        ClassName,
			Annotations: map[string]string{defaultClassAnnotation: "true"},
		},
		Provisioner:       ProvisionerName,
		ReclaimPolicy:     new(corev1.PersistentVolumeReclaimDelete),
		VolumeBindingMode: new(storagev1.VolumeBindingWaitForFirstConsumer),
	}
}

// Directory is where the volumes of a node are, below the directory of all nodes.
func Directory(nodes, node string) string { return filepath.Join(nodes, node, "volumes") }

// wantsVolume says whether a claim waits for a volume from us. The annotation says that Kubernetes found no existing one.
func wantsVolume(claim *corev1.PersistentVolumeClaim) bool {
	return claim.DeletionTimestamp == nil && claim.Spec.VolumeName == "" && claim.Annotations[provisionerAnnotation] == ProvisionerName
}

// newVolume is the volume of a claim on a node. Its name follows from the claim, so that it is made once.
func newVolume(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node, nodes string) (*corev1.PersistentVolume, error) {
	if err := unsupported(claim, class); err != nil {
		return nil, err
	}
	host := node.Labels[corev1.LabelHostname]
	if host == "" {
		return nil, fmt.Errorf("node %s has no label %s; its kubelet sets it when it registers", node.Name, corev1.LabelHostname)
	}
	name := "pvc-" + string(claim.UID)
	reclaim := corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		reclaim = *class.ReclaimPolicy
	}
	return &corev1.PersistentVolume{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"},
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Labels:      map[string]string{NodeLabel: labelValue(node.Name)},
			Annotations: map[string]string{provisionedByAnnotation: ProvisionerName, selectedNodeAnnotation: node.Name},
			Finalizers:  []string{Finalizer},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: reclaim,
			StorageClassName:              class.Name,
			VolumeMode:                    new(corev1.PersistentVolumeFilesystem),
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				Local: &corev1.LocalVolumeSource{Path: filepath.Join(Directory(nodes, node.Name), name)},
			},
			NodeAffinity: onNode(host),
		},
	}, nil
}

// unsupported says what a claim asks for that a directory cannot give.
func unsupported(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	spec := claim.Spec
	switch {
	case class.VolumeBindingMode == nil || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer:
		return fmt.Errorf("storage class %s must have volumeBindingMode WaitForFirstConsumer: a directory is on one node, which the first pod decides", class.Name)
	case spec.VolumeMode != nil && *spec.VolumeMode == corev1.PersistentVolumeBlock:
		return fmt.Errorf("volumeMode Block is not offered by %s: use Filesystem, a virtual machine gets a disk either way", class.Name)
	case slices.Contains(spec.AccessModes, corev1.ReadWriteMany) || slices.Contains(spec.AccessModes, corev1.ReadOnlyMany):
		return fmt.Errorf("access modes %v are not offered by %s: a directory is on one node; use ReadWriteOnce",
			spec.AccessModes, class.Name)
	case spec.Selector != nil:
		return fmt.Errorf("a selector is not supported by %s: remove spec.selector", class.Name)
	case spec.DataSource != nil || spec.DataSourceRef != nil:
		return fmt.Errorf("data sources are not supported by %s: remove spec.dataSource", class.Name)
	}
	return nil
}

func onNode(host string) *corev1.VolumeNodeAffinity {
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{host}}},
	}}}}
}

// labelValue is a node's name as a label's value, which is shorter than names may be.
func labelValue(node string) string {
	if len(node) <= 63 {
		return node
	}
	sum := sha256.Sum256([]byte(node))
	return node[:46] + "-" + hex.EncodeToString(sum[:8])
}

// isOurs says whether we made a volume.
func isOurs(v *corev1.PersistentVolume) bool {
	return v.Annotations[provisionedByAnnotation] == ProvisionerName
}

// isDone says whether a volume's claim is gone and its data may go too.
func isDone(v *corev1.PersistentVolume) bool {
	return v.Status.Phase == corev1.VolumeReleased && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}

// mayClear says whether a volume is on its way out and nobody can use it any more.
func mayClear(v *corev1.PersistentVolume) bool {
	return v.DeletionTimestamp != nil && slices.Contains(v.Finalizers, Finalizer) && !slices.Contains(v.Finalizers, protectionFinalizer)
}
