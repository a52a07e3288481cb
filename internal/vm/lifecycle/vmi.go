package lifecycle

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/tenancy/attachment"
	"patchbay/internal/vm/launcherpod"
)

// VMIView is what is known of a virtual machine instance at one moment.
type VMIView struct {
	Now      time.Time
	Settings Settings
	VMI      *virtv1.VirtualMachineInstance
	// Pods are the pods that belong to the instance: the one that it started in and those of its migrations.
	Pods []*corev1.Pod
	// Claims are the existing persistent volume claims of the instance's volumes, by name.
	Claims map[string]*corev1.PersistentVolumeClaim
	// Networks are the resource names that existing network attachments ask for, by "namespace/name"; "" for none. They are looked at
	// before the instance has a pod, and while interfaces are being plugged.
	Networks map[string]string
	// Overlay is what the instance's pod asks of the overlay, by the name of the instance's network. While OverlayFault says
	// why that is not known, no pod is made.
	Overlay      map[string]attachment.Request
	OverlayFault error
	// Nodes are the cluster's nodes, and Volumes the persistent volumes that Claims are bound to. Both may be empty once the
	// instance has a pod.
	Nodes   []*corev1.Node
	Volumes []*corev1.PersistentVolume
	// Node is the node that the instance is on; nil when there is none of that name.
	Node *corev1.Node
}

// How long the controller leaves the last word to others.
const (
	// agentLead is how long after a pod's orderly end the node's agent has to say how the guest ended.
	agentLead = 5 * time.Second
	// exitLead is how long the launcher of an ended guest has to end by itself, so that its pod and log stay to be read.
	exitLead = 30 * time.Second
	// lostNodeLead is how long after a pod should have ended on a node that does not answer it is given up.
	lostNodeLead = 60 * time.Second
)

// vmiStep collects what one step wants. vmi is a copy: what the instance is to be.
type vmiStep struct {
	view    VMIView
	vmi     *virtv1.VirtualMachineInstance
	pod     *corev1.Pod // that the guest is or will be in
	actions []Action    // before the instance's patch
	events  []Action    // after it
	confirm bool
	after   time.Duration
}

// StepVMI decides what happens next to a virtual machine instance. The node's agent writes to the same object: it alone says
// Running, and it has the first word on Succeeded and Failed.
func StepVMI(v VMIView) Decision {
	s := &vmiStep{view: v, vmi: v.VMI.DeepCopy(), pod: CurrentPod(v.VMI, v.Pods)}
	switch {
	case s.vmi.DeletionTimestamp != nil:
		s.end()
	case s.vmi.IsFinal():
		s.cleanUp()
	case s.pod == nil:
		s.withoutPod()
	default:
		s.followPod()
	}
	s.followAttachments()
	s.setConditions()
	s.markMigrationRequired()
	s.followPhase()
	s.syncPods()
	return s.decision()
}

// VMIFailed tells the user that an action of a step could not be carried out.
func VMIFailed(v VMIView, a Action, err error) Decision {
	s := &vmiStep{view: v, vmi: v.VMI.DeepCopy(), pod: CurrentPod(v.VMI, v.Pods)}
	switch a.(type) {
	case Create:
		s.createFailed(err)
	case Delete:
		s.warn(reasonFailedDelete, err)
	default:
		s.warn("FailedPodPatch", err)
	}
	return s.decision()
}

func (s *vmiStep) decision() Decision {
	actions := s.actions
	if !equality.Semantic.DeepEqual(s.view.VMI, s.vmi) {
		actions = append(actions, Patch{From: s.view.VMI, To: s.vmi})
	}
	return Decision{Actions: append(actions, s.events...), Confirm: s.confirm, After: s.after}
}

func (s *vmiStep) warn(reason string, err error) {
	s.events = append(s.events, Event{Object: s.view.VMI, Type: corev1.EventTypeWarning, Reason: reason, Message: err.Error()})
}

func (s *vmiStep) tell(reason, text string) {
	s.events = append(s.events, Event{Object: s.view.VMI, Type: corev1.EventTypeNormal, Reason: reason, Message: text})
}

// CurrentPod is the pod that the guest is in or, before it runs, will be in. After a migration that is the one on the
// instance's node; a migration's target is never the first pod.
func CurrentPod(vmi *virtv1.VirtualMachineInstance, pods []*corev1.Pod) *corev1.Pod {
	var best *corev1.Pod
	if ms := vmi.Status.MigrationState; ms != nil && ms.Completed && !ms.Failed && ms.TargetNode == vmi.Status.NodeName {
		for _, pod := range pods {
			if pod.Name == ms.TargetPod { // an earlier one on the node may not have ended yet
				return pod
			}
		}
	}
	for _, pod := range slices.SortedFunc(slices.Values(pods), olderFirst) {
		_, target := pod.Labels[virtv1.MigrationJobLabel]
		onNode := vmi.Status.NodeName != "" && pod.Spec.NodeName == vmi.Status.NodeName
		switch {
		case onNode && (best == nil || best.Spec.NodeName != vmi.Status.NodeName || isOver(best)):
			best = pod
		case best == nil && !target:
			best = pod
		}
	}
	return best
}

func olderFirst(a, b *corev1.Pod) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// withoutPod makes the first pod. An instance that had one has lost it, and does not get another: its machine starts a new one.
func (s *vmiStep) withoutPod() {
	if s.vmi.Status.Phase != virtv1.VmPhaseUnset && s.vmi.Status.Phase != virtv1.Pending {
		s.confirm = true
		s.fail("", "virt-launcher pod is gone")
		return
	}
	if !hasFinalizer(s.vmi.Finalizers, virtv1.VirtualMachineInstanceFinalizer) {
		s.vmi.Finalizers = withFinalizer(s.vmi.Finalizers, virtv1.VirtualMachineInstanceFinalizer)
		s.vmi.Status.Phase = virtv1.Pending
		s.vmi.Status.RuntimeUser = launcherpod.User
		return // no pod before we are sure to be asked when the instance is deleted
	}
	s.vmi.Status.Phase = virtv1.Pending
	s.vmi.Status.RuntimeUser = launcherpod.User
	pod, err := s.buildPod()
	if err != nil {
		s.createFailed(err)
		return
	}
	if pod == nil {
		return
	}
	s.confirm = true
	s.pod = pod
	s.actions = append(s.actions, Create{Object: pod})
	s.tell(reasonCreated, "Created virtual machine pod "+pod.Name)
	s.vmi.Status.Phase = virtv1.Scheduling
	s.clearFailure(reasonClaimNotFound, reasonFailedCreate, reasonNoAgent)
}

// buildPod makes the pod; nil without an error means that something it needs is awaited.
func (s *vmiStep) buildPod() (*corev1.Pod, error) {
	claims := map[string]launcherpod.Claim{}
	for _, v := range s.vmi.Spec.Volumes {
		name := launcherpod.ClaimName(v)
		if name == "" {
			continue
		}
		claim, ok := s.view.Claims[name]
		if !ok || claim.DeletionTimestamp != nil {
			s.fault(reasonClaimNotFound, fmt.Sprintf("PVC %s/%s does not exist, waiting for it to appear", s.vmi.Namespace, name))
			return nil, nil
		}
		claims[name] = launcherpod.Claim{Block: claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock}
	}
	for _, n := range s.vmi.Spec.Networks {
		if n.Multus == nil {
			continue
		}
		namespace, name := launcherpod.AttachmentKey(s.vmi.Namespace, n.Multus.NetworkName)
		if key := namespace + "/" + name; !has(s.view.Networks, key) {
			return nil, launcherpod.NetworkNotFoundError(key)
		}
	}
	if errors.Is(s.view.OverlayFault, attachment.ErrAwaited) {
		s.clearFailure(reasonFailedCreate) // what was missing is there
		s.after = createRetry              // its event comes before
		return nil, nil
	}
	if s.view.OverlayFault != nil {
		return nil, s.view.OverlayFault
	}
	return s.accelerate(launcherpod.Request{
		Cluster: s.view.Settings.Launcher, VMI: s.vmi, Claims: claims, NetworkResources: s.view.Networks, Overlay: s.view.Overlay,
	})
}

func has[V any](m map[string]V, key string) bool { _, ok := m[key]; return ok }

// createFailed keeps the instance pending and says why. It is tried again when something changes, or after a while.
func (s *vmiStep) createFailed(err error) {
	if c := vmiCondition(s.vmi, virtv1.VirtualMachineInstanceSynchronized); c == nil || c.Message != err.Error() {
		s.warn(reasonFailedCreate, err)
	}
	s.fault(reasonFailedCreate, err.Error())
	s.after = createRetry
}

const createRetry = 10 * time.Second

// followPod takes over what the pod says.
func (s *vmiStep) followPod() {
	phase := s.vmi.Status.Phase
	s.trackPod()
	switch {
	case isOver(s.pod):
		s.podEnded()
	case s.pod.DeletionTimestamp != nil:
		s.podLeaves()
	case phase == virtv1.VmPhaseUnset || phase == virtv1.Pending || phase == virtv1.Scheduling:
		s.vmi.Finalizers = withFinalizer(s.vmi.Finalizers, virtv1.VirtualMachineInstanceFinalizer)
		s.vmi.Status.Phase = virtv1.Scheduling
		s.clearFailure(reasonClaimNotFound, reasonFailedCreate, reasonNoAgent)
		if isReady(s.pod) {
			s.schedule()
		}
	}
}

// trackPod records where the pods are.
func (s *vmiStep) trackPod() {
	active := map[string]string{}
	for _, pod := range s.view.Pods {
		if pod.Spec.NodeName != "" && !isOver(pod) {
			active[string(pod.UID)] = pod.Spec.NodeName
		}
	}
	s.setActivePods(active)
}

// schedule hands the instance to the agent of the pod's node.
func (s *vmiStep) schedule() {
	status := &s.vmi.Status
	status.Phase = virtv1.Scheduled
	status.NodeName = s.pod.Spec.NodeName
	status.MigrationTransport = virtv1.MigrationTransportUnix
	status.LauncherContainerImageVersion = s.pod.Spec.Containers[0].Image
	status.RuntimeUser = launcherpod.User
	if q := s.pod.Status.QOSClass; q != "" {
		status.QOSClass = &q
	}
	status.VolumeStatus = volumeStatus(s.vmi, s.view.Claims)
	if s.vmi.Labels == nil {
		s.vmi.Labels = map[string]string{}
	}
	s.vmi.Labels[virtv1.NodeNameLabel] = s.pod.Spec.NodeName
}

// podEnded says how the guest ended, from how its pod did, when the agent did not say it.
func (s *vmiStep) podEnded() {
	if s.guestElsewhere() {
		return
	}
	ran := s.vmi.Status.Phase == virtv1.Running || s.vmi.Status.Phase == virtv1.Unknown
	if !ran || s.pod.Status.Phase == corev1.PodFailed {
		s.fail(s.pod.Status.Reason, endMessage(s.pod))
		return
	}
	if wait := endTime(s.pod).Add(agentLead).Sub(s.view.Now); wait > 0 {
		s.after = sooner(s.after, wait)
		return
	}
	s.vmi.Status.Phase = virtv1.Succeeded
	s.tell(reasonStopped, textShutDown)
}

// guestElsewhere says whether another pod holds the guest, or may: a migration that is under way decides by itself.
func (s *vmiStep) guestElsewhere() bool {
	if isMigrating(s.vmi) {
		return true
	}
	return slices.ContainsFunc(s.view.Pods, func(p *corev1.Pod) bool {
		return p != s.pod && !isOver(p) && p.Status.Phase == corev1.PodRunning && s.vmi.Status.MigrationState != nil &&
			s.vmi.Status.MigrationState.TargetPod == p.Name
	})
}

// podLeaves handles a pod that somebody deleted: before the guest starts there is nothing to wait for; a running guest shuts
// down within the pod's grace period, and its agent reports it.
func (s *vmiStep) podLeaves() {
	switch s.vmi.Status.Phase {
	case virtv1.Scheduled, virtv1.Running, virtv1.Unknown:
	default:
		s.fail("", "virt-launcher pod was deleted")
		return
	}
	if nodeAnswers(s.view.Node) {
		return
	}
	if wait := s.pod.DeletionTimestamp.Add(lostNodeLead).Sub(s.view.Now); wait > 0 {
		s.after = sooner(s.after, wait)
		return
	}
	s.fail(reasonNodeUnresponsive, "node "+s.vmi.Status.NodeName+" does not answer")
}

// fail ends the instance as failed.
func (s *vmiStep) fail(reason, message string) {
	if s.vmi.Status.Phase == virtv1.Running || s.vmi.Status.Phase == virtv1.Unknown {
		s.tell(reasonStopped, textCrashed)
	} else {
		s.warn(reasonFailedCreate, fmt.Errorf("the guest did not start: %s", message))
	}
	s.vmi.Status.Phase = virtv1.Failed
	s.vmi.Status.Reason = reason
}

// cleanUp ends the pod of an instance that has ended, when its launcher does not end by itself.
func (s *vmiStep) cleanUp() {
	s.trackPod()
	ended := s.view.Now
	for _, t := range s.vmi.Status.PhaseTransitionTimestamps {
		if t.Phase == s.vmi.Status.Phase {
			ended = t.PhaseTransitionTimestamp.Time
		}
	}
	for _, pod := range s.view.Pods {
		if isOver(pod) || pod.DeletionTimestamp != nil {
			continue
		}
		if wait := ended.Add(exitLead).Sub(s.view.Now); wait > 0 {
			s.after = sooner(s.after, wait)
			continue
		}
		s.deletePod(pod)
	}
}

// end carries out the deletion of the instance: the agent shuts the guest down, the pods are given time for it, and the instance
// goes after them.
func (s *vmiStep) end() {
	if !hasFinalizer(s.vmi.Finalizers, virtv1.VirtualMachineInstanceFinalizer) {
		return
	}
	s.trackPod()
	if len(s.view.Pods) > 0 {
		for _, pod := range s.view.Pods {
			s.deletePod(pod)
		}
		if s.pod != nil && isOver(s.pod) && !s.vmi.IsFinal() && hasRun(s.view.VMI) {
			s.podEnded()
		}
		return
	}
	s.confirm = true
	if !s.vmi.IsFinal() {
		s.vmi.Status.Phase = virtv1.Failed // "deleted before it was ever started"
		if hasRun(s.view.VMI) {
			s.vmi.Status.Phase = virtv1.Succeeded
		}
	}
	s.vmi.Finalizers = withoutFinalizer(s.vmi.Finalizers, virtv1.VirtualMachineInstanceFinalizer)
}

// deletePod deletes a pod with the guest's grace period, and again when that became shorter.
func (s *vmiStep) deletePod(pod *corev1.Pod) {
	grace := launcherpod.GracePeriod(s.vmi) + launcherpod.PodDeleteMargin
	first := pod.DeletionTimestamp == nil
	if !first && (pod.DeletionGracePeriodSeconds == nil || *pod.DeletionGracePeriodSeconds <= grace) {
		return
	}
	s.actions = append(s.actions, Delete{Object: pod, GraceSeconds: &grace})
	if first {
		s.actions = append(s.actions, Event{
			Object: s.view.VMI, Type: corev1.EventTypeNormal, Reason: reasonDeleted, Message: "Deleted virtual machine pod " + pod.Name,
		})
	}
}

// followPhase notes when the phase changed, whoever changed it.
func (s *vmiStep) followPhase() {
	status := &s.vmi.Status
	known := slices.ContainsFunc(status.PhaseTransitionTimestamps, func(t virtv1.VirtualMachineInstancePhaseTransitionTimestamp) bool {
		return t.Phase == status.Phase
	})
	if known || status.Phase == virtv1.VmPhaseUnset {
		return
	}
	if len(status.PhaseTransitionTimestamps) == 0 && status.Phase != virtv1.Pending {
		status.PhaseTransitionTimestamps = append(status.PhaseTransitionTimestamps, virtv1.VirtualMachineInstancePhaseTransitionTimestamp{
			Phase: virtv1.Pending, PhaseTransitionTimestamp: s.vmi.CreationTimestamp,
		})
	}
	status.PhaseTransitionTimestamps = append(status.PhaseTransitionTimestamps, virtv1.VirtualMachineInstancePhaseTransitionTimestamp{
		Phase: status.Phase, PhaseTransitionTimestamp: metav1.NewTime(s.view.Now),
	})
}
