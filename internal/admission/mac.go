package admission

import (
	"context"
	"net/http"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
	hooks "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apply "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	clientset "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

// MACs gives NICs their addresses while objects are admitted; *assign.Assigner is one. An error is a refusal; a dry run records
// nothing.
type MACs interface {
	Complete(ctx context.Context, old, vm *virtv1.VirtualMachine, dryRun bool) (warnings []string, err error)
	CompletePod(ctx context.Context, pod *corev1.Pod, dryRun bool) (warnings []string, err error)
}

const (
	// MACConfiguration is the webhook configuration whose namespace selectors say where the MAC pool is at work. An administrator
	// may turn a selector from opt-out to opt-in or back; it is kept.
	MACConfiguration = "kubemacpool-mutator"
	// MACForVMs and MACForPods are its webhooks, and the labels of namespaces that opt in ("allocate") or out ("ignore").
	MACForVMs  = "mutatevirtualmachines.kubemacpool.io"
	MACForPods = "mutatepods.kubemacpool.io"
)

// macWebhooks are the calls of the MAC pool.
func (s *Server) macWebhooks() []webhook {
	if s.config.MACs == nil {
		return nil
	}
	return []webhook{
		{name: MACForVMs, path: "mac-virtualmachines", mutating: true, records: true, group: virtGroup, versions: virtVersions,
			resource: "virtualmachines", on: createOrUpdate, namespaces: optOut(MACForVMs), decide: s.completeVM},
		{name: MACForPods, path: "mac-pods", mutating: true, records: true, versions: []string{"v1"},
			resource: "pods", on: create, namespaces: optIn(MACForPods), decide: s.completePod},
	}
}

func (s *Server) completeVM(req *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	old, vm, err := objects[virtv1.VirtualMachine](r)
	if err != nil {
		return nil, err
	}
	vm.Namespace = r.Namespace
	after := vm.DeepCopy()
	warnings, refused := s.config.MACs.Complete(req.Context(), old, after, isDryRun(r))
	return completed(r, vm, after, warnings, refused)
}

func (s *Server) completePod(req *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	_, pod, err := objects[corev1.Pod](r)
	if err != nil {
		return nil, err
	}
	pod.Namespace = r.Namespace // absent from what controllers make
	after := pod.DeepCopy()
	warnings, refused := s.config.MACs.CompletePod(req.Context(), after, isDryRun(r))
	return completed(r, pod, after, warnings, refused)
}

// completed answers with what changed. Refusals are internal errors, as clients of published pools know them.
func completed[T any](r *admissionv1.AdmissionRequest, before, after *T, warnings []string, refused error) (*admissionv1.AdmissionResponse, error) {
	if refused != nil {
		return &admissionv1.AdmissionResponse{Result: &metav1.Status{
			Status: metav1.StatusFailure, Message: refused.Error(), Code: http.StatusInternalServerError,
		}}, nil
	}
	response, err := patched(r.Object.Raw, before, after)
	if err == nil {
		response.Warnings = warnings
	}
	return response, err
}

func isDryRun(r *admissionv1.AdmissionRequest) bool { return r.DryRun != nil && *r.DryRun }

func optOut(key string) *metav1.LabelSelector {
	return chosen(metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpNotIn, Values: []string{"ignore"}})
}

func optIn(key string) *metav1.LabelSelector {
	return chosen(metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpIn, Values: []string{"allocate"}})
}

// chosen leaves out namespaces of the control plane, whose pods must start without any webhook.
func chosen(mode metav1.LabelSelectorRequirement) *metav1.LabelSelector {
	levels := []string{"0", "1"}
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		mode,
		{Key: "runlevel", Operator: metav1.LabelSelectorOpNotIn, Values: levels},
		{Key: "openshift.io/run-level", Operator: metav1.LabelSelectorOpNotIn, Values: levels},
	}}
}

// hasMode says that a selector tells which namespaces take part: by opting in or by not opting out.
func hasMode(key string, s *metav1.LabelSelector) bool {
	if s == nil {
		return false
	}
	return s.MatchLabels[key] == "allocate" || slices.ContainsFunc(s.MatchExpressions, func(r metav1.LabelSelectorRequirement) bool {
		in := r.Operator == metav1.LabelSelectorOpIn && slices.Equal(r.Values, []string{"allocate"})
		out := r.Operator == metav1.LabelSelectorOpNotIn && slices.Equal(r.Values, []string{"ignore"})
		return r.Key == key && (in || out)
	})
}

// installMACs applies the pool's webhooks and keeps the modes that an administrator chose for them.
func (s *Server) installMACs(ctx context.Context, client *clientset.AdmissionregistrationV1Client,
	reach func(webhook) *apply.WebhookClientConfigApplyConfiguration, options metav1.ApplyOptions) error {
	if s.config.MACs == nil {
		return nil
	}
	stored, err := client.MutatingWebhookConfigurations().Get(ctx, MACConfiguration, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		stored = &hooks.MutatingWebhookConfiguration{}
	} else if err != nil {
		return err
	}
	configuration := apply.MutatingWebhookConfiguration(MACConfiguration)
	for _, w := range s.macWebhooks() {
		if s := selectorOf(stored, w.name); hasMode(w.name, s) {
			w.namespaces = s
		}
		configuration.WithWebhooks(w.mutatingConfiguration(reach(w)))
	}
	_, err = client.MutatingWebhookConfigurations().Apply(ctx, configuration, options)
	return err
}

func selectorOf(c *hooks.MutatingWebhookConfiguration, name string) *metav1.LabelSelector {
	for _, w := range c.Webhooks {
		if w.Name == name {
			return w.NamespaceSelector
		}
	}
	return nil
}
