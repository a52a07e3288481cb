package subresource

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/util/retry"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// maxBody is how large the body of a request may be, in bytes. A whole VM is the largest.
const maxBody = 1 << 20

// readOptions reads a body that may be JSON, YAML or empty.
func readOptions(r *http.Request, into any) error {
	if r.Body == nil {
		return nil
	}
	err := yaml.NewYAMLOrJSONDecoder(http.MaxBytesReader(nil, r.Body, maxBody), 1024).Decode(into)
	if err != nil && !errors.Is(err, io.EOF) {
		return apierrors.NewBadRequest(fmt.Sprintf("Can not unmarshal Request body to struct, error: %s", err))
	}
	return nil
}

func (s *Server) startMachine(w http.ResponseWriter, r *http.Request) {
	var o virtv1.StartOptions
	accepted(w, s.changeMachine(r, &o, func(m machine) (change, error) { return m.start(o) }, func() []string { return o.DryRun }))
}

func (s *Server) stopMachine(w http.ResponseWriter, r *http.Request) {
	var o virtv1.StopOptions
	accepted(w, s.changeMachine(r, &o, func(m machine) (change, error) { return m.stop(o) }, func() []string { return o.DryRun }))
}

func (s *Server) restartMachine(w http.ResponseWriter, r *http.Request) {
	var o virtv1.RestartOptions
	accepted(w, s.changeMachine(r, &o, func(m machine) (change, error) { return m.restart(o) }, func() []string { return o.DryRun }))
}

// changeMachine reads the options, decides and applies. When somebody else writes the VM in between it decides again.
func (s *Server) changeMachine(r *http.Request, options any, decide func(machine) (change, error), dryRun func() []string) error {
	if err := readOptions(r, options); err != nil {
		return err
	}
	key := objectKey(r)
	var refused error
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		m, err := s.machine(r.Context(), key)
		if err != nil {
			return err
		}
		c, err := decide(m)
		if refused = err; err != nil {
			return nil // a decision is not tried again
		}
		return s.apply(r.Context(), m, c, dryRun())
	})
	return errors.Join(refused, err)
}

func objectKey(r *http.Request) client.ObjectKey {
	return client.ObjectKey{Namespace: r.PathValue("namespace"), Name: r.PathValue("name")}
}

func (s *Server) machine(ctx context.Context, key client.ObjectKey) (machine, error) {
	m := machine{vm: &virtv1.VirtualMachine{}}
	if err := s.Client.Get(ctx, key, m.vm); apierrors.IsNotFound(err) {
		return m, apierrors.NewNotFound(machineKind, key.Name)
	} else if err != nil {
		return m, err
	}
	vmi, err := s.instance(ctx, key)
	if err != nil && !apierrors.IsNotFound(err) {
		return m, err
	}
	m.vmi = vmi
	return m, nil
}

// instance returns nil with its error.
func (s *Server) instance(ctx context.Context, key client.ObjectKey) (*virtv1.VirtualMachineInstance, error) {
	vmi := &virtv1.VirtualMachineInstance{}
	err := s.Client.Get(ctx, key, vmi)
	switch {
	case apierrors.IsNotFound(err):
		return nil, apierrors.NewNotFound(instanceKind, key.Name)
	case err != nil:
		return nil, err
	}
	return vmi, nil
}

// apply writes a change; the grace period first, so that the stop that follows uses it.
func (s *Server) apply(ctx context.Context, m machine, c change, dryRun []string) error {
	if c.grace != nil {
		before := m.vmi.DeepCopy()
		m.vmi.Spec.TerminationGracePeriodSeconds = c.grace
		if err := s.Client.Patch(ctx, m.vmi, client.MergeFrom(before), patchOptions(dryRun)); err != nil {
			return fmt.Errorf("set the grace period of %s/%s: %w", m.vmi.Namespace, m.vmi.Name, err)
		}
	}
	lock := client.MergeFromWithOptions(m.vm.DeepCopy(), client.MergeFromWithOptimisticLock{})
	switch {
	case c.run != nil:
		setRunning(m.vm, *c.run)
		return s.Client.Patch(ctx, m.vm, lock, patchOptions(dryRun))
	case len(c.requests) > 0:
		m.vm.Status.StateChangeRequests = c.requests
		return s.Client.Status().Patch(ctx, m.vm, lock, &client.SubResourcePatchOptions{PatchOptions: *patchOptions(dryRun)})
	}
	return nil
}

func patchOptions(dryRun []string) *client.PatchOptions { return &client.PatchOptions{DryRun: dryRun} }

// setRunning uses the field that the user uses.
func setRunning(vm *virtv1.VirtualMachine, on bool) {
	if vm.Spec.Running != nil {
		vm.Spec.Running = &on
		return
	}
	strategy := virtv1.RunStrategyHalted
	if on {
		strategy = virtv1.RunStrategyAlways
	}
	vm.Spec.RunStrategy = &strategy
}

func (s *Server) migrateMachine(w http.ResponseWriter, r *http.Request) {
	var o virtv1.MigrateOptions
	if err := readOptions(r, &o); err != nil {
		refuse(w, err)
		return
	}
	m, err := s.machine(r.Context(), objectKey(r))
	if err == nil && (m.vmi == nil || m.vmi.Status.Phase != virtv1.Running) {
		err = m.conflict("VM is not running")
	}
	if err == nil {
		err = s.createMigration(r.Context(), m.vmi, o)
	}
	accepted(w, err)
}

func (s *Server) createMigration(ctx context.Context, vmi *virtv1.VirtualMachineInstance, o virtv1.MigrateOptions) error {
	migration := &virtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "kubevirt-migrate-vm-", Namespace: vmi.Namespace},
		Spec:       virtv1.VirtualMachineInstanceMigrationSpec{VMIName: vmi.Name, AddedNodeSelector: o.AddedNodeSelector},
	}
	err := s.Client.Create(ctx, migration, &client.CreateOptions{DryRun: o.DryRun})
	switch {
	case meta.IsNoMatchError(err):
		return apierrors.NewInternalError(errors.New("this cluster does not serve VirtualMachineInstanceMigration; wait until the controller has started"))
	case err != nil:
		return apierrors.NewInternalError(err)
	}
	return nil
}

// cancelEvacuation takes back the wish to empty a node of one machine.
func (s *Server) cancelEvacuation(w http.ResponseWriter, r *http.Request) {
	var o virtv1.EvacuateCancelOptions
	err := readOptions(r, &o)
	var vmi *virtv1.VirtualMachineInstance
	if err == nil {
		vmi, err = s.instance(r.Context(), objectKey(r))
	}
	if err == nil {
		before := vmi.DeepCopy()
		vmi.Status.EvacuationNodeName = ""
		err = s.Client.Patch(r.Context(), vmi, client.MergeFrom(before), patchOptions(o.DryRun))
	}
	if err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (s *Server) expandSpec(w http.ResponseWriter, r *http.Request) {
	m, err := s.machine(r.Context(), objectKey(r))
	if err != nil {
		refuse(w, err)
		return
	}
	writeExpanded(w, m.vm)
}

func (s *Server) expandGivenSpec(w http.ResponseWriter, r *http.Request) {
	vm := &virtv1.VirtualMachine{}
	if err := readOptions(r, vm); err != nil {
		refuse(w, err)
		return
	}
	if vm.Spec.Template == nil {
		refuse(w, apierrors.NewBadRequest("Object is not a valid VirtualMachine"))
		return
	}
	writeExpanded(w, vm)
}

func writeExpanded(w http.ResponseWriter, vm *virtv1.VirtualMachine) {
	if vm.Spec.Instancetype != nil || vm.Spec.Preference != nil {
		refuse(w, apierrors.NewBadRequest("this cluster serves no instance types or preferences; remove them from the VM and set CPU and memory instead"))
		return
	}
	vm.SetGroupVersionKind(virtv1.VirtualMachineGroupVersionKind)
	writeJSON(w, http.StatusOK, vm)
}
