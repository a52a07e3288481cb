package lifecycle

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"

	"github.com/google/uuid"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/vm/launcherpod"
)

// firmwareSpace is the UUID namespace of machines that were made without a firmware UUID: their names in it are theirs for good.
var firmwareSpace = uuid.MustParse("6a1a24a1-4061-4607-8bf4-a3963d0c5895")

// RevisionName is the name of the controller revision that keeps the specification a machine was started with.
func RevisionName(vm types.UID, generation int64) string {
	return fmt.Sprintf("revision-start-vm-%s-%d", vm, generation)
}

// revisionData is what a controller revision holds.
type revisionData struct {
	Spec virtv1.VirtualMachineSpec `json:"spec"`
}

func newRevision(vm *virtv1.VirtualMachine) (*appsv1.ControllerRevision, error) {
	data, err := json.Marshal(revisionData{Spec: vm.Spec})
	if err != nil {
		return nil, err
	}
	return &appsv1.ControllerRevision{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ControllerRevision"},
		ObjectMeta: metav1.ObjectMeta{
			Name:            RevisionName(vm.UID, vm.Generation),
			Namespace:       vm.Namespace,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(vm, virtv1.VirtualMachineGroupVersionKind)},
		},
		Data:     runtime.RawExtension{Raw: data},
		Revision: vm.Generation,
	}, nil
}

// StartSpec reads the specification that a controller revision keeps.
func StartSpec(r *appsv1.ControllerRevision) (*virtv1.VirtualMachineSpec, error) {
	var data revisionData
	if err := json.Unmarshal(r.Data.Raw, &data); err != nil {
		return nil, fmt.Errorf("controller revision %s/%s: %w", r.Namespace, r.Name, err)
	}
	return &data.Spec, nil
}

// newInstance is the instance that a machine starts now.
func newInstance(settings Settings, vm *virtv1.VirtualMachine, paused bool) (*virtv1.VirtualMachineInstance, error) {
	template := vm.Spec.Template.DeepCopy()
	annotations := maps.Clone(template.ObjectMeta.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[virtv1.VirtualMachineGenerationAnnotation] = strconv.FormatInt(vm.Generation, 10)
	vmi := &virtv1.VirtualMachineInstance{
		TypeMeta: metav1.TypeMeta{APIVersion: virtv1.GroupVersion.String(), Kind: virtv1.VirtualMachineInstanceGroupVersionKind.Kind},
		ObjectMeta: metav1.ObjectMeta{
			Name:            vm.Name,
			Namespace:       vm.Namespace,
			Labels:          template.ObjectMeta.Labels,
			Annotations:     annotations,
			Finalizers:      []string{virtv1.VirtualMachineControllerFinalizer, virtv1.VirtualMachineInstanceFinalizer},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(vm, virtv1.VirtualMachineGroupVersionKind)},
		},
		Spec: template.Spec,
	}
	vmi.Status.Phase = virtv1.Pending
	vmi.Status.RuntimeUser = launcherpod.User
	vmi.Status.VirtualMachineRevisionName = RevisionName(vm.UID, vm.Generation)
	if paused {
		vmi.Spec.StartStrategy = new(virtv1.StartStrategyPaused)
	}
	return vmi, settings.defaultNetwork(vm.Namespace, &vmi.Spec)
}

// addFirmwareUUID gives a machine that was made without one the UUID that it has always had in its guest's eyes.
func addFirmwareUUID(vm *virtv1.VirtualMachine) {
	domain := &vm.Spec.Template.Spec.Domain
	if domain.Firmware != nil && domain.Firmware.UUID != "" {
		return
	}
	if domain.Firmware == nil {
		domain.Firmware = &virtv1.Firmware{}
	}
	domain.Firmware.UUID = types.UID(uuid.NewSHA1(firmwareSpace, []byte(vm.Name)).String())
}
