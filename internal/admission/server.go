package admission

import (
	"context"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	virtv1 "kubevirt.io/api/core/v1"
	migrationsv1 "kubevirt.io/api/migrations/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/settings"
)

// Prefix is where the webhooks lie on the controller's server.
const Prefix = "/admission/"

// Config is what a Server is made of.
type Config struct {
	// Policy gives the administrator's decisions of this moment.
	Policy func() Policy
	// Reader finds the VMIs and migrations that a rule speaks of; a cache will do.
	Reader client.Reader
	// Settings are the cluster's.
	Settings settings.Settings
	// MACs completes the addresses of NICs; without it nobody does.
	MACs MACs
	// Evict says why a pod may not be evicted now, or nothing when it may; nil: every pod may. by is who asks, as far as the request says.
	Evict func(ctx context.Context, pod types.NamespacedName, by string, dryRun bool) (refusal string, err error)
	// NewID makes firmware identifiers; random ones when nil.
	NewID NewID
}

// Server answers the API server's webhooks.
type Server struct {
	config Config
	mux    *http.ServeMux
}

// NewServer makes a handler of everything below Prefix.
func NewServer(config Config) *Server {
	s := &Server{config: config, mux: http.NewServeMux()}
	for _, hook := range append(s.webhooks(), s.macWebhooks()...) {
		s.mux.HandleFunc("POST "+Prefix+hook.path, review(hook.decide))
	}
	return s
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

func (s *Server) defaulter() Defaulter {
	return Defaulter{Policy: s.config.Policy(), NewID: s.config.NewID, Tenant: TenantOf(s.config.Reader), ProjectKeys: ProjectKeysOf(s.config.Reader)}
}

func (s *Server) mutateVM(_ *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	old, vm, err := objects[virtv1.VirtualMachine](r)
	if err != nil {
		return nil, err
	}
	after := vm.DeepCopy()
	if old != nil {
		KeepIdentity(old, after)
	} else {
		s.defaulter().DefaultVM(r.Namespace, after)
	}
	if after.Spec.Template != nil {
		s.defaulter().DefaultBindings(r.Namespace, &after.Spec.Template.Spec)
	}
	return patched(r.Object.Raw, vm, after)
}

func (s *Server) validateVM(_ *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	old, vm, err := objects[virtv1.VirtualMachine](r)
	if err != nil {
		return nil, err
	}
	if vm.DeletionTimestamp != nil {
		return answer(nil), nil // only finalizers are taken off; nothing may hold that up
	}
	causes := ValidateVM(old, vm, s.config.Policy())
	if t := vm.Spec.Template; t != nil {
		causes = append(causes, s.wishes(r.Namespace, t.ObjectMeta, field.NewPath("spec", "template", "metadata", "annotations"))...)
	}
	return answer(causes, WarnVM(vm)...), nil
}

func (s *Server) mutateVMI(_ *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	old, vmi, err := objects[virtv1.VirtualMachineInstance](r)
	if err != nil {
		return nil, err
	}
	by, after := Requester(r.UserInfo.Username), vmi.DeepCopy()
	if old != nil {
		KeepStatus(old, after, by)
	} else if err := s.defaulter().DefaultVMI(after, by); err != nil { // the API server has set the namespace
		return answer(plain(err.Error())), nil
	}
	return patched(r.Object.Raw, vmi, after)
}

func (s *Server) validateVMI(_ *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	old, vmi, err := objects[virtv1.VirtualMachineInstance](r)
	if err != nil {
		return nil, err
	}
	by := Requester(r.UserInfo.Username)
	if old != nil {
		return answer(ValidateVMIUpdate(old, vmi, by)), nil
	}
	causes := s.wishes(r.Namespace, vmi.ObjectMeta, field.NewPath("metadata", "annotations"))
	return answer(append(ValidateVMI(vmi, by, s.config.Policy()), causes...)), nil
}

func (s *Server) mutateMigration(_ *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	_, m, err := objects[virtv1.VirtualMachineInstanceMigration](r)
	if err != nil {
		return nil, err
	}
	after := m.DeepCopy()
	DefaultMigration(after)
	return patched(r.Object.Raw, m, after)
}

func (s *Server) validateMigration(req *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	old, m, err := objects[virtv1.VirtualMachineInstanceMigration](r)
	if err != nil {
		return nil, err
	}
	if old != nil {
		return answer(ValidateMigrationUpdate(old, m)), nil
	}
	m.Namespace = r.Namespace // absent from objects made with generateName by some clients
	in, err := s.migrationContext(req.Context(), m)
	if err != nil {
		return nil, err
	}
	return answer(ValidateMigration(m, in, Requester(r.UserInfo.Username), s.config.Policy())), nil
}

func (s *Server) migrationContext(ctx context.Context, m *virtv1.VirtualMachineInstanceMigration) (MigrationContext, error) {
	var in MigrationContext
	vmi := &virtv1.VirtualMachineInstance{}
	switch err := s.config.Reader.Get(ctx, client.ObjectKey{Namespace: m.Namespace, Name: m.Spec.VMIName}, vmi); {
	case err == nil:
		in.VMI = vmi
	case !apierrors.IsNotFound(err):
		return in, err
	}
	var all virtv1.VirtualMachineInstanceMigrationList
	if err := s.config.Reader.List(ctx, &all, client.InNamespace(m.Namespace)); err != nil {
		return in, err
	}
	in.Others = all.Items
	return in, nil
}

func (s *Server) validateMigrationPolicy(_ *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	_, p, err := objects[migrationsv1.MigrationPolicy](r)
	if err != nil {
		return nil, err
	}
	return answer(ValidateMigrationPolicy(p)), nil
}

// requestedBy is the annotation by which a program that evicts pods names itself.
const requestedBy = "requested-by"

// intercept turns the eviction of a machine's pod into a migration. Its refusal is one that clients repeat the request after.
func (s *Server) intercept(req *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	if s.config.Evict == nil {
		return answer(nil), nil
	}
	_, eviction, err := objects[policyv1.Eviction](r)
	if err != nil {
		return nil, err
	}
	dry := r.DryRun != nil && *r.DryRun
	refusal, err := s.config.Evict(req.Context(), types.NamespacedName{Namespace: r.Namespace, Name: r.Name}, eviction.Annotations[requestedBy], dry)
	if err != nil {
		refusal = err.Error() // it may pass: the pod must not go because of it
	}
	if refusal == "" {
		return answer(nil), nil
	}
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Message: refusal, Reason: metav1.StatusReasonTooManyRequests, Code: http.StatusTooManyRequests,
	}}, nil
}

// warnService never refuses: Services belong to everybody, and to most of them VMs mean nothing.
func (s *Server) warnService(req *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	_, service, err := objects[corev1.Service](r)
	if err != nil {
		return nil, err
	}
	return answer(nil, WarnService(service, s.selectsMesh(req.Context(), r.Namespace, service))...), nil
}

func (s *Server) selectsMesh(ctx context.Context, namespace string, service *corev1.Service) bool {
	if len(service.Spec.Selector) == 0 {
		return false
	}
	var vmis virtv1.VirtualMachineInstanceList
	selector := labels.SelectorFromSet(service.Spec.Selector)
	if err := s.config.Reader.List(ctx, &vmis, client.InNamespace(namespace)); err != nil {
		return false // a warning is not worth an error
	}
	for _, vmi := range vmis.Items {
		if selector.Matches(labels.Set(vmi.Labels)) && InMesh(vmi.Annotations) {
			return true
		}
	}
	return false
}
