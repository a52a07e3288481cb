package lifecycle

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
)

// instance makes an instance that is in a phase and has conditions of the form type, status, reason.
func instance(phase virtv1.VirtualMachineInstancePhase, conditions ...[3]string) *virtv1.VirtualMachineInstance {
	vmi := &virtv1.VirtualMachineInstance{}
	vmi.UID, vmi.Status.Phase = "vmi", phase
	vmi.Spec.Volumes = []virtv1.Volume{{Name: "data", VolumeSource: virtv1.VolumeSource{DataVolume: &virtv1.DataVolumeSource{Name: "data"}}}}
	for _, c := range conditions {
		vmi.Status.Conditions = append(vmi.Status.Conditions, virtv1.VirtualMachineInstanceCondition{
			Type: virtv1.VirtualMachineInstanceConditionType(c[0]), Status: corev1.ConditionStatus(c[1]), Reason: c[2],
		})
	}
	return vmi
}

func TestPrintableStatus(t *testing.T) {
	deleted := &metav1.Time{Time: epoch}
	deletedVMI := instance(virtv1.Running)
	deletedVMI.DeletionTimestamp = deleted
	migrating := instance(virtv1.Running, [3]string{"Paused", "True"})
	migrating.Status.MigrationState = &virtv1.VirtualMachineInstanceMigrationState{}
	migrated := instance(virtv1.Running)
	migrated.Status.MigrationState = &virtv1.VirtualMachineInstanceMigrationState{Completed: true}
	uid := types.UID("vmi")
	failures := &virtv1.VirtualMachineStartFailure{ConsecutiveFailCount: 1}
	unbound := map[string]*corev1.PersistentVolumeClaim{"data": {Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}}}

	for _, c := range []struct {
		want     virtv1.VirtualMachinePrintableStatus
		vmi      *virtv1.VirtualMachineInstance
		deleted  bool
		requests []stateChange
		failure  *virtv1.VirtualMachineStartFailure
		claims   map[string]*corev1.PersistentVolumeClaim
		strategy virtv1.VirtualMachineRunStrategy
	}{
		{want: "Terminating", vmi: deletedVMI, deleted: true},
		{want: "Stopping", vmi: deletedVMI},
		{want: "Stopping", vmi: instance(virtv1.Running), requests: []stateChange{{Action: virtv1.StopRequest, UID: &uid}}},
		{want: "Migrating", vmi: migrating},
		{want: "Running", vmi: migrated},
		{want: "Paused", vmi: instance(virtv1.Running, [3]string{"Paused", "True"})},
		{want: "Running", vmi: instance(virtv1.Running, [3]string{"Paused", "False"})},
		{want: "Running", vmi: instance(virtv1.Running), claims: unbound},
		{want: "ErrorPvcNotFound", vmi: instance(virtv1.Pending, [3]string{"Synchronized", "False", "FailedPvcNotFound"})},
		{want: "DataVolumeError", vmi: instance(virtv1.Pending, [3]string{"Synchronized", "False", "FailedDataVolumeImport"})},
		{want: "ErrorUnschedulable", vmi: instance(virtv1.Scheduling, [3]string{"PodScheduled", "False", "Unschedulable"}), claims: unbound},
		{want: "Provisioning", vmi: instance(virtv1.Pending, [3]string{"Provisioning", "True"}), claims: unbound},
		{want: "WaitingForVolumeBinding", vmi: instance(virtv1.Scheduling), claims: unbound},
		{want: "ErrImagePull", vmi: instance(virtv1.Scheduling, [3]string{"Synchronized", "False", "ErrImagePull"})},
		{want: "ImagePullBackOff", vmi: instance(virtv1.Scheduling, [3]string{"Synchronized", "False", "ImagePullBackOff"})},
		{want: "Starting", vmi: instance("")},
		{want: "Starting", vmi: instance(virtv1.Pending, [3]string{"Synchronized", "False", "FailedCreate"}), failure: failures},
		{want: "Starting", vmi: instance(virtv1.Scheduled)},
		{want: "CrashLoopBackOff", failure: failures},
		{want: "CrashLoopBackOff", vmi: instance(virtv1.Failed), failure: failures},
		{want: "Stopped"},
		{want: "Stopped", vmi: instance(virtv1.Succeeded)},
		{want: "WaitingForReceiver", strategy: virtv1.RunStrategyWaitAsReceiver},
		{want: "Unknown", vmi: instance(virtv1.Unknown)},
	} {
		t.Run(string(c.want), func(t *testing.T) {
			vm := &virtv1.VirtualMachine{}
			vm.Status.StateChangeRequests, vm.Status.StartFailure = c.requests, c.failure
			if c.deleted {
				vm.DeletionTimestamp = deleted
			}
			if c.strategy != "" {
				vm.Spec.RunStrategy = &c.strategy
			}
			s := &vmStep{view: VMView{Claims: c.claims}, vm: vm, vmi: c.vmi}
			if got := s.printable(); got != c.want {
				t.Errorf("printable status %q, want %q", got, c.want)
			}
		})
	}
}

func TestBackOff(t *testing.T) {
	for _, c := range []struct {
		failures int
		jitter   float64
		want     time.Duration
	}{
		{1, 0, 10 * time.Second},
		{1, 0.5, 12500 * time.Millisecond},
		{2, 0, 40 * time.Second},
		{3, 0.99, 134550 * time.Millisecond},
		{5, 0, 250 * time.Second},
		{5, 0.9, 300 * time.Second},
		{6, 0, 300 * time.Second},
		{1000, 0.1, 300 * time.Second},
	} {
		if got := backOff(c.failures, c.jitter); got != c.want {
			t.Errorf("backOff(%d, %v) = %v, want %v", c.failures, c.jitter, got, c.want)
		}
	}
}

func TestIsReady(t *testing.T) {
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	waiting := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}
	for name, c := range map[string]struct {
		containers []corev1.ContainerStatus
		phase      corev1.PodPhase
		want       bool
	}{
		"compute runs, its probe asks the guest": {[]corev1.ContainerStatus{{Name: "compute", State: running}}, corev1.PodRunning, true},
		"compute waits":                          {[]corev1.ContainerStatus{{Name: "compute", State: waiting}}, corev1.PodRunning, false},
		"mesh proxy is slow":                     {[]corev1.ContainerStatus{{Name: "compute", State: running}, {Name: "istio-proxy", State: running}}, corev1.PodRunning, true},
		"another container is not ready":         {[]corev1.ContainerStatus{{Name: "compute", State: running}, {Name: "hook", State: running}}, corev1.PodRunning, false},
		"pod pending":                            {[]corev1.ContainerStatus{{Name: "compute", State: running}}, corev1.PodPending, false},
		"nothing known of the containers so far": {nil, corev1.PodRunning, false},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "node-1"}, Status: corev1.PodStatus{Phase: c.phase, ContainerStatuses: c.containers}}
			if got := isReady(pod); got != c.want {
				t.Errorf("isReady %v, want %v", got, c.want)
			}
		})
	}
}

func TestCurrentPod(t *testing.T) {
	pod := func(name, node string, age int, phase corev1.PodPhase, job string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(epoch.Add(time.Duration(age) * time.Minute))}}
		p.Spec.NodeName, p.Status.Phase = node, phase
		if job != "" {
			p.Labels = map[string]string{virtv1.MigrationJobLabel: job}
		}
		return p
	}
	source := pod("source", "node-1", 0, corev1.PodRunning, "")
	target := pod("target", "node-2", 1, corev1.PodRunning, "job")
	failed := pod("failed", "node-2", 1, corev1.PodFailed, "job")
	retried := pod("retried", "node-2", 2, corev1.PodRunning, "job2")
	for name, c := range map[string]struct {
		node string
		pods []*corev1.Pod
		want *corev1.Pod
	}{
		"none":                         {"", nil, nil},
		"first pod, not placed":        {"", []*corev1.Pod{source}, source},
		"a target is never the first":  {"", []*corev1.Pod{target}, nil},
		"before the switch":            {"node-1", []*corev1.Pod{target, source}, source},
		"after the switch":             {"node-2", []*corev1.Pod{target, source}, target},
		"after a failed attempt there": {"node-2", []*corev1.Pod{failed, retried, source}, retried},
	} {
		t.Run(name, func(t *testing.T) {
			vmi := &virtv1.VirtualMachineInstance{}
			vmi.Status.NodeName = c.node
			if got := CurrentPod(vmi, c.pods); got != c.want {
				t.Errorf("current pod %v, want %v", got, c.want)
			}
		})
	}
}

func TestFirmwareUUIDFollowsFromName(t *testing.T) {
	vm := &virtv1.VirtualMachine{}
	vm.Name, vm.Spec.Template = "testvm", &virtv1.VirtualMachineInstanceTemplateSpec{}
	addFirmwareUUID(vm)
	// uuid5(6a1a24a1-4061-4607-8bf4-a3963d0c5895, "testvm")
	if got, want := string(vm.Spec.Template.Spec.Domain.Firmware.UUID), "5a9fc181-957e-5c32-9e5a-2de5e9673531"; got != want {
		t.Errorf("firmware UUID %s, want %s", got, want)
	}
}
