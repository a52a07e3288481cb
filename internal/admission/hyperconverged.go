package admission

import (
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"

	hcov1beta1 "patchbay/api/hco/v1beta1"
)

// mutateHyperConverged makes both layouts of an object say the same.
func mutateHyperConverged(_ *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	old, h, err := objects[hcov1beta1.HyperConverged](r)
	if err != nil {
		return nil, err
	}
	if old == nil {
		old = &hcov1beta1.HyperConverged{}
	}
	after := h.DeepCopy()
	after.Spec.Agree(old.Spec, r.Kind.Version)
	return patched(r.Object.Raw, h, after)
}
