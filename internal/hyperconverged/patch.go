package hyperconverged

import (
	"encoding/json"
	"fmt"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	virtv1 "kubevirt.io/api/core/v1"

	hcov1beta1 "patchbay/api/hco/v1beta1"
)

// KubeVirtPatchAnnotation holds a JSON patch (RFC 6902) of the KubeVirt object that follows from HyperConverged: the published way
// to settings that have no field.
const KubeVirtPatchAnnotation = "kubevirt.kubevirt.io/jsonpatch"

// NetworkPatchAnnotation holds a JSON patch of the published configuration of network add-ons. There is no such object here; the
// one patch that is documented, which takes the MAC pool away, is understood.
const NetworkPatchAnnotation = "networkaddonsconfigs.kubevirt.io/jsonpatch"

// withoutMACPool says that the object takes the MAC pool away.
func withoutMACPool(h *hcov1beta1.HyperConverged) bool {
	var operations []struct {
		Op, Path string
		Value    any
	}
	if json.Unmarshal([]byte(h.Annotations[NetworkPatchAnnotation]), &operations) != nil {
		return false
	}
	off := false
	for _, o := range operations {
		if o.Path == "/spec/kubeMacPool" {
			off = o.Op == "remove" || o.Value == nil
		}
	}
	return off
}

// patched applies the annotation's patch to a spec. A patch that does not apply changes nothing.
func patched(h *hcov1beta1.HyperConverged, spec virtv1.KubeVirtSpec) (virtv1.KubeVirtSpec, error) {
	text, set := h.Annotations[KubeVirtPatchAnnotation]
	if !set {
		return spec, nil
	}
	patch, err := jsonpatch.DecodePatch([]byte(text))
	if err != nil {
		return spec, fmt.Errorf("invalid jsonPatch in the %s annotation: %w", KubeVirtPatchAnnotation, err)
	}
	document, err := json.Marshal(virtv1.KubeVirt{Spec: spec})
	if err != nil {
		return spec, err
	}
	if document, err = patch.Apply(document); err != nil {
		return spec, fmt.Errorf("failed to apply the patch of the %s annotation: %w", KubeVirtPatchAnnotation, err)
	}
	var after virtv1.KubeVirt
	if err := json.Unmarshal(document, &after); err != nil {
		return spec, fmt.Errorf("the patch of the %s annotation does not give a KubeVirt object: %w", KubeVirtPatchAnnotation, err)
	}
	return after.Spec, nil
}
