package migrate

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	migrationsv1 "kubevirt.io/api/migrations/v1alpha1"
)

// View is what is known of a migration at one moment.
type View struct {
	Now       time.Time
	Migration *virtv1.VirtualMachineInstanceMigration
	VMI       *virtv1.VirtualMachineInstance // nil: it does not exist
	// Source is the pod that the guest is in, Target the one made for this migration; nil: there is none.
	Source, Target *corev1.Pod
	// Others are the cluster's migrations, with or without this one.
	Others []Load
	// Failures are the ends of this machine's failed migrations of the same origin, and when they were.
	Failures []time.Time

	Configuration *virtv1.MigrationConfiguration
	Policies      []migrationsv1.MigrationPolicy
	Namespace     *corev1.Namespace
}

// Load is a migration as others see it.
type Load struct {
	UID      types.UID
	VMI      types.NamespacedName
	Phase    virtv1.VirtualMachineInstanceMigrationPhase
	Source   string // node
	Priority int
	Created  time.Time
}

// Decision is what is to be done. Status and finalizers are those of Migration; VMI is nil when it stays as it is.
type Decision struct {
	Migration    *virtv1.VirtualMachineInstanceMigration
	VMI          *virtv1.VirtualMachineInstance
	CreateTarget bool // make the target's pod
	DeleteTarget bool // the target's pod is of no use any more
	Events       []Event
	After        time.Duration // when to look again if nothing happens; 0: never
}

// Event tells the user, about the migration.
type Event struct{ Type, Reason, Message string }

// Times of a migration.
const (
	unschedulableLimit = 300 * time.Second
	pendingLimit       = 900 * time.Second
	firstBackOff       = 20 * time.Second
	lastBackOff        = 10 * time.Minute
)

// Step decides what happens next to a migration.
func Step(v View) Decision {
	s := &step{v: v, m: v.Migration.DeepCopy()}
	if v.VMI != nil {
		s.vmi = v.VMI.DeepCopy()
	}
	s.run()
	s.followPhase()
	d := s.d
	d.Migration = s.m
	if s.touched {
		d.VMI = s.vmi
	}
	return d
}

type step struct {
	v       View
	m       *virtv1.VirtualMachineInstanceMigration
	vmi     *virtv1.VirtualMachineInstance // nil: it does not exist
	touched bool                           // vmi is to be written
	d       Decision
}

func (s *step) run() {
	switch {
	case s.m.IsFinal():
		s.cleanUp()
	case s.vmi == nil || s.vmi.UID == "" || s.vmi.IsFinal() || s.vmi.DeletionTimestamp != nil:
		s.withoutMachine()
	case s.handedOff():
		s.follow()
	case s.m.DeletionTimestamp != nil:
		s.abortRequested()
		s.fail("the migration was cancelled before it began")
	default:
		s.prepare()
	}
}

// handedOff says that the agents have this migration in hand, or had it.
func (s *step) handedOff() bool {
	ms := s.vmi.Status.MigrationState
	return ms != nil && ms.MigrationUID == s.m.UID
}

func (s *step) withoutMachine() {
	if s.vmi != nil && s.handedOff() && s.vmi.Status.MigrationState.Completed {
		s.follow()
		return
	}
	if s.vmi == nil || s.vmi.UID == "" {
		s.fail("the virtual machine instance " + s.m.Spec.VMIName + " does not exist")
		return
	}
	s.fail("the virtual machine instance ended")
}

// prepare gets from a wish to a pod on another node, and hands over to the agents.
func (s *step) prepare() {
	switch {
	case s.m.Status.Phase == virtv1.MigrationPhaseUnset:
		s.m.Status.Phase = virtv1.MigrationPending
		s.d.After = 1 // what pending waits for may be there
	case s.m.Status.Phase == virtv1.MigrationPending && s.v.Target == nil:
		s.pend()
	case s.v.Target == nil:
		s.fail("the target's pod is gone")
	case over(s.v.Target):
		s.fail(fmt.Sprintf("the target's pod %s ended before the migration began%s", s.v.Target.Name, why(s.v.Target)))
	case s.m.Status.Phase == virtv1.MigrationPending:
		s.m.Status.Phase = virtv1.MigrationScheduling
		s.awaitPod()
	case s.m.Status.Phase == virtv1.MigrationScheduling:
		s.awaitPod()
	default:
		s.handOff()
	}
}

// pend waits for capacity, and for other migrations of the machine.
func (s *step) pend() {
	retry := pendingRetry(s.m)
	switch {
	case !s.vmi.IsRunning():
		s.d.After = retry
	case !migratable(s.vmi):
		s.fail("the virtual machine instance cannot be migrated: " + notMigratable(s.vmi))
	case s.machineBusy() || s.clusterBusy():
		s.d.After = retry
	case s.backOff() > 0:
		s.d.After = s.backOff()
	default:
		s.d.CreateTarget = true
	}
}

func (s *step) machineBusy() bool {
	if ms := s.vmi.Status.MigrationState; ms != nil && !ms.Completed && !ms.Failed {
		return true
	}
	key := types.NamespacedName{Namespace: s.m.Namespace, Name: s.m.Spec.VMIName}
	return slices.ContainsFunc(s.v.Others, func(o Load) bool {
		return o.UID != s.m.UID && o.VMI == key && o.active() && (o.running() || o.before(s.self()))
	})
}

// clusterBusy counts the migrations that go on, and those that wait with a better right.
func (s *step) clusterBusy() bool {
	limits, cluster, node := LimitsOf(s.v.Configuration), 0, 0
	for _, o := range s.v.Others {
		if o.UID == s.m.UID || !o.running() && !(o.Phase == virtv1.MigrationPending && o.before(s.self())) {
			continue
		}
		sameNode := o.Source == s.vmi.Status.NodeName
		if !o.running() && !sameNode && cluster >= limits.PerCluster {
			continue
		}
		cluster++
		if sameNode {
			node++
		}
	}
	return cluster >= limits.PerCluster || node >= limits.PerNode
}

func (s *step) self() Load {
	return Load{UID: s.m.UID, Priority: PriorityOf(s.m), Created: s.m.CreationTimestamp.Time}
}

func (l Load) active() bool {
	return l.Phase != virtv1.MigrationSucceeded && l.Phase != virtv1.MigrationFailed
}

// running migrations take part of the capacity.
func (l Load) running() bool {
	return l.active() && l.Phase != virtv1.MigrationPhaseUnset && l.Phase != virtv1.MigrationPending
}

func (l Load) before(o Load) bool {
	return cmp.Or(cmp.Compare(o.Priority, l.Priority), l.Created.Compare(o.Created), cmp.Compare(l.UID, o.UID)) < 0
}

// PriorityOf is a migration's rank among those that wait.
func PriorityOf(m *virtv1.VirtualMachineInstanceMigration) int {
	if m.Spec.Priority == nil {
		return 0
	}
	switch *m.Spec.Priority {
	case virtv1.PrioritySystemCritical:
		return 100
	case virtv1.PriorityUserTriggered:
		return 50
	case virtv1.PrioritySystemMaintenance:
		return 20
	}
	return 0
}

func pendingRetry(m *virtv1.VirtualMachineInstanceMigration) time.Duration {
	switch p := PriorityOf(m); {
	case p >= 100:
		return time.Second
	case p >= 50 || p == 0:
		return 3 * time.Second
	default:
		return 5 * time.Second
	}
}

// backOff spaces out migrations that nobody asked for and that fail again and again.
func (s *step) backOff() time.Duration {
	if !Automatic(s.m) || len(s.v.Failures) == 0 {
		return 0
	}
	wait := min(firstBackOff<<min(len(s.v.Failures)-1, 10), lastBackOff)
	last := slices.MaxFunc(s.v.Failures, time.Time.Compare)
	return max(0, last.Add(wait).Sub(s.v.Now))
}

// Automatic says that no user asked for the migration.
func Automatic(m *virtv1.VirtualMachineInstanceMigration) bool {
	_, evacuation := m.Annotations[virtv1.EvacuationMigrationAnnotation]
	_, update := m.Annotations[virtv1.WorkloadUpdateMigrationAnnotation]
	return evacuation || update
}

// awaitPod waits until the target's pod stands on a node.
func (s *step) awaitPod() {
	pod := s.v.Target
	if ready(pod) {
		s.m.Status.Phase = virtv1.MigrationScheduled
		s.d.After = 1 // hand off at once
		return
	}
	limit, reason := s.limit(virtv1.MigrationPendingPodTimeoutSecondsAnnotation, pendingLimit), "was not ready"
	if c := condition(pod, corev1.PodScheduled); c != nil && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
		limit = s.limit(virtv1.MigrationUnschedulablePodTimeoutSecondsAnnotation, unschedulableLimit)
		reason = "fits on no node: " + c.Message
	}
	if wait := pod.CreationTimestamp.Add(limit).Sub(s.v.Now); wait > 0 {
		s.d.After = wait
		return
	}
	s.fail(fmt.Sprintf("the target's pod %s %s, for %s", pod.Name, reason, limit))
}

func (s *step) limit(annotation string, otherwise time.Duration) time.Duration {
	seconds, err := strconv.Atoi(s.m.Annotations[annotation])
	if err != nil || seconds < 0 {
		return otherwise
	}
	return time.Duration(seconds) * time.Second
}

// handOff names the target on the instance. From here on the agents decide.
func (s *step) handOff() {
	if old := s.vmi.Status.MigrationState; old != nil && !old.Completed && !old.Failed {
		s.d.After = pendingRetry(s.m) // of another migration
		return
	}
	if s.v.Source == nil || over(s.v.Source) {
		s.fail("the guest's pod ended")
		return
	}
	policy := matching(s.v.Policies, s.vmi, s.v.Namespace)
	ms := &virtv1.VirtualMachineInstanceMigrationState{
		MigrationUID: s.m.UID, SourceNode: s.vmi.Status.NodeName, SourcePod: s.v.Source.Name,
		TargetNode: s.v.Target.Spec.NodeName, TargetPod: s.v.Target.Name,
		VMIMConfigurationOptions: effective(s.v.Configuration, policy),
	}
	if policy != nil {
		ms.MigrationPolicyName = new(policy.Name)
	}
	s.vmi.Status.MigrationState = ms
	s.label(ms.TargetNode)
	s.m.Status.Phase = virtv1.MigrationPreparingTarget
	s.touched = true
}

func (s *step) label(node string) {
	if s.vmi.Labels == nil {
		s.vmi.Labels = map[string]string{}
	}
	s.vmi.Labels[virtv1.MigrationTargetNodeNameLabel] = node
}

// follow takes over what the agents say.
func (s *step) follow() {
	ms := s.vmi.Status.MigrationState
	if s.m.DeletionTimestamp != nil {
		s.abort(ms)
	}
	s.endForAgents(ms)
	phase := virtv1.MigrationPreparingTarget
	switch {
	case ms.Failed:
		s.fail(ms.FailureReason)
		return
	case ms.Completed:
		s.succeed()
		return
	case ms.StartTimestamp != nil:
		phase = virtv1.MigrationRunning
	case ms.TargetNodeAddress != "" && len(ms.TargetDirectMigrationNodePorts) > 0:
		phase = virtv1.MigrationTargetReady
	}
	if order(phase) > order(s.m.Status.Phase) {
		s.m.Status.Phase = next(s.m.Status.Phase, phase)
		if s.m.Status.Phase != phase {
			s.d.After = 1
		}
	}
}

// abort asks the source to give up. Before it has begun, nobody needs to be asked.
func (s *step) abort(ms *virtv1.VirtualMachineInstanceMigrationState) {
	s.abortRequested()
	if ms.AbortRequested || ms.Completed {
		return
	}
	ms.AbortRequested, s.touched = true, true
	if ms.StartTimestamp == nil {
		ms.AbortStatus = virtv1.MigrationAbortSucceeded
		s.end(ms, "the migration was cancelled")
	}
}

// endForAgents says failed where no agent can: before the source has begun, and when both pods are gone.
func (s *step) endForAgents(ms *virtv1.VirtualMachineInstanceMigrationState) {
	targetOver := s.v.Target == nil || over(s.v.Target) || s.v.Target.DeletionTimestamp != nil && ms.StartTimestamp == nil
	sourceOver := s.v.Source == nil || over(s.v.Source)
	if ms.Completed || ms.Failed || !targetOver || ms.StartTimestamp != nil && !sourceOver {
		return
	}
	if ms.StartTimestamp != nil { // the target's end is a consequence
		s.end(ms, "the guest's pod ended while it was on its way"+why(s.v.Source))
		return
	}
	s.end(ms, "the target's pod ended"+why(s.v.Target))
}

func (s *step) end(ms *virtv1.VirtualMachineInstanceMigrationState, reason string) {
	now := metav1.NewTime(s.v.Now)
	ms.Completed, ms.Failed, ms.FailureReason, ms.EndTimestamp = true, true, reason, &now
	s.touched = true
}

func (s *step) abortRequested() {
	s.condition(virtv1.VirtualMachineInstanceMigrationAbortRequested)
}

func (s *step) condition(kind virtv1.VirtualMachineInstanceMigrationConditionType) {
	if slices.ContainsFunc(s.m.Status.Conditions, func(c virtv1.VirtualMachineInstanceMigrationCondition) bool { return c.Type == kind }) {
		return
	}
	now := metav1.NewTime(s.v.Now)
	s.m.Status.Conditions = append(s.m.Status.Conditions, virtv1.VirtualMachineInstanceMigrationCondition{
		Type: kind, Status: corev1.ConditionTrue, LastProbeTime: now, LastTransitionTime: now,
	})
}

func (s *step) fail(reason string) {
	s.m.Status.Phase = virtv1.MigrationFailed
	s.d.Events = append(s.d.Events, Event{corev1.EventTypeWarning, reasonFailed, "Migration failed: " + reason})
	s.cleanUp()
	if s.m.Status.MigrationState == nil { // the agents never had it: nobody else has said why
		now := metav1.NewTime(s.v.Now)
		s.m.Status.MigrationState = &virtv1.VirtualMachineInstanceMigrationState{
			MigrationUID: s.m.UID, Completed: true, Failed: true, FailureReason: reason, EndTimestamp: &now,
		}
	}
}

func (s *step) succeed() {
	if s.m.Status.Phase != virtv1.MigrationRunning {
		s.m.Status.Phase = next(s.m.Status.Phase, virtv1.MigrationRunning)
		s.d.After = 1
		return
	}
	s.m.Status.Phase = virtv1.MigrationSucceeded
	s.d.Events = append(s.d.Events, Event{corev1.EventTypeNormal, reasonSucceeded, "Migration succeeded: the guest runs on node " + s.vmi.Status.NodeName})
	s.cleanUp()
}

// cleanUp follows the end: the state is kept on the migration, the instance loses its label, a target that was not reached its pod.
func (s *step) cleanUp() {
	if s.vmi != nil && s.handedOff() {
		if ms := s.vmi.Status.MigrationState; ms.Completed {
			s.m.Status.MigrationState = ms.DeepCopy()
			if s.vmi.Labels[virtv1.MigrationTargetNodeNameLabel] == ms.TargetNode && s.targetSettled(ms) {
				delete(s.vmi.Labels, virtv1.MigrationTargetNodeNameLabel)
				s.touched = true
			}
		}
	}
	pod := s.v.Target
	if s.m.Status.Phase == virtv1.MigrationFailed && pod != nil && !over(pod) && pod.DeletionTimestamp == nil && !s.holdsGuest(pod) {
		s.d.DeleteTarget = true
	}
	s.m.Finalizers = slices.DeleteFunc(s.m.Finalizers, func(f string) bool { return f == virtv1.VirtualMachineInstanceMigrationFinalizer })
}

// targetSettled says that the target's agent has no use for the label any more: it has the instance, or its QEMU is gone.
func (s *step) targetSettled(ms *virtv1.VirtualMachineInstanceMigrationState) bool {
	return !ms.Failed || s.v.Target == nil || over(s.v.Target)
}

// holdsGuest says that the guest lives in a pod.
func (s *step) holdsGuest(pod *corev1.Pod) bool {
	return s.vmi != nil && s.vmi.Status.NodeName != "" && s.vmi.Status.NodeName == pod.Spec.NodeName && !s.vmi.IsFinal()
}

// followPhase notes when the phase changed.
func (s *step) followPhase() {
	status := &s.m.Status
	if status.Phase == s.v.Migration.Status.Phase {
		return
	}
	status.PhaseTransitionTimestamps = append(status.PhaseTransitionTimestamps, virtv1.VirtualMachineInstanceMigrationPhaseTransitionTimestamp{
		Phase: status.Phase, PhaseTransitionTimestamp: metav1.NewTime(s.v.Now),
	})
}
