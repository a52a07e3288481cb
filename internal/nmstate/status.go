package nmstate

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nmstate/kubernetes-nmstate/api/shared"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Condition types and reasons that the published types lack.
const (
	PolicyIgnored = shared.ConditionType("Ignored")

	ReasonRetrying = shared.ConditionReason("Retrying")
	// ReasonReconcileFailed is the event of a policy that a node gave up.
	ReasonReconcileFailed = "ReconcileFailed"
)

// MaxRetries is how often a node tries to apply one generation of a policy.
const MaxRetries = 5

// Backoff is how long a node waits before a try, counted from 1.
func Backoff(try int) time.Duration {
	return min(time.Second<<min(max(try-2, 0), 10), 30*time.Second)
}

// Phase is what an enactment's conditions say together.
type Phase string

// Phases of an enactment.
const (
	Waiting     Phase = "Waiting" // nothing is known yet
	Pending     Phase = "Pending"
	Progressing Phase = "Progressing"
	Retrying    Phase = "Retrying"
	Failing     Phase = "Failing"
	Aborted     Phase = "Aborted"
	Available   Phase = "Available"
)

// trueIn lists the conditions that are true in a phase, with their reason.
var trueIn = map[Phase]map[shared.ConditionType]shared.ConditionReason{
	Pending:     {shared.NodeNetworkConfigurationEnactmentConditionPending: shared.NodeNetworkConfigurationEnactmentConditionMaxUnavailableLimitReached},
	Progressing: {shared.NodeNetworkConfigurationEnactmentConditionProgressing: shared.NodeNetworkConfigurationEnactmentConditionConfigurationProgressing},
	Retrying: {
		shared.NodeNetworkConfigurationEnactmentConditionFailing:     ReasonRetrying,
		shared.NodeNetworkConfigurationEnactmentConditionProgressing: ReasonRetrying,
	},
	Failing:   {shared.NodeNetworkConfigurationEnactmentConditionFailing: shared.NodeNetworkConfigurationEnactmentConditionFailedToConfigure},
	Aborted:   {shared.NodeNetworkConfigurationEnactmentConditionAborted: shared.NodeNetworkConfigurationEnactmentConditionConfigurationAborted},
	Available: {shared.NodeNetworkConfigurationEnactmentConditionAvailable: shared.NodeNetworkConfigurationEnactmentConditionSuccessfullyConfigured},
}

// SetPhase writes the conditions of a phase. Transition times change with the status only.
func SetPhase(list *shared.ConditionList, phase Phase, message string, now time.Time) {
	reason, text := shared.ConditionReason(""), ""
	for _, r := range trueIn[phase] {
		reason, text = r, message
	}
	for _, kind := range shared.NodeNetworkConfigurationEnactmentConditionTypes {
		status := corev1.ConditionFalse
		if phase == Waiting {
			status = corev1.ConditionUnknown
		}
		if _, ok := trueIn[phase][kind]; ok {
			status = corev1.ConditionTrue
		}
		if status == corev1.ConditionTrue {
			setCondition(list, kind, status, reason, text, now)
		} else {
			setCondition(list, kind, status, reason, "", now)
		}
	}
}

func setCondition(list *shared.ConditionList, kind shared.ConditionType, status corev1.ConditionStatus, reason shared.ConditionReason, message string, now time.Time) {
	c := list.Find(kind)
	if c == nil {
		*list = append(*list, shared.Condition{Type: kind})
		c = &(*list)[len(*list)-1]
	}
	if c.Status == status && c.Reason == reason && c.Message == message {
		return // nothing is written when nothing happened
	}
	if c.Status != status {
		c.LastTransitionTime = metav1.NewTime(now)
	}
	c.Status, c.Reason, c.Message, c.LastHeartbeatTime = status, reason, message, metav1.NewTime(now)
}

// PhaseOf reads the conditions of an enactment.
func PhaseOf(list shared.ConditionList) Phase {
	is := func(kind shared.ConditionType) bool {
		c := list.Find(kind)
		return c != nil && c.Status == corev1.ConditionTrue
	}
	switch {
	case is(shared.NodeNetworkConfigurationEnactmentConditionAvailable):
		return Available
	case is(shared.NodeNetworkConfigurationEnactmentConditionAborted):
		return Aborted
	case is(shared.NodeNetworkConfigurationEnactmentConditionPending):
		return Pending
	case is(shared.NodeNetworkConfigurationEnactmentConditionFailing) && is(shared.NodeNetworkConfigurationEnactmentConditionProgressing):
		return Retrying
	case is(shared.NodeNetworkConfigurationEnactmentConditionFailing):
		return Failing
	case is(shared.NodeNetworkConfigurationEnactmentConditionProgressing):
		return Progressing
	}
	return Waiting
}

// Messages of enactments.
const (
	MessageApplying   = "Applying desired state"
	MessageSuccess    = "successfully reconciled"
	MessagePending    = "Waiting for progressing nodes to finish"
	messageAborted    = "reconciliation of enactment %q has aborted"
	messageRetrying   = "failed to reconcile NodeNetworkConfigurationPolicy on node %s. Retrying %d/%d"
	messageGivenUp    = "reconciliation of enactment %q has failed after %d retries"
	messageFailed     = "error reconciling NodeNetworkConfigurationPolicy on node %s at desired state apply: %v"
	messageNoDocument = "failure generating desiredState and capturedStates: %v"
)

// AbortedMessage is of an enactment that was never tried.
func AbortedMessage(enactment string) string { return fmt.Sprintf(messageAborted, enactment) }

// RetryingMessage is of an enactment between two tries.
func RetryingMessage(node string, try int, err error) string {
	return fmt.Sprintf(messageRetrying, node, try, MaxRetries) + ": " + err.Error()
}

// GivenUpMessage is of the event of an enactment that is not tried again.
func GivenUpMessage(enactment string, tries int) string {
	return fmt.Sprintf(messageGivenUp, enactment, tries)
}

// FailedMessage says why a node's network could not become what the policy says.
func FailedMessage(node string, err error) string { return fmt.Sprintf(messageFailed, node, err) }

// NoDocumentMessage says why there is no document for the node.
func NoDocumentMessage(err error) string { return fmt.Sprintf(messageNoDocument, err) }

// Turn says what a node may do about one generation of a policy.
type Turn string

// Turns. The cluster's one controller gives them, so that no two nodes can take the last place at the same time.
const (
	Go    Turn = "go"
	Wait  Turn = "wait"
	Abort Turn = "abort"
)

// TurnAnnotation holds "<generation>:<turn>" on an enactment.
const TurnAnnotation = "patchbay.io/nmstate-turn"

// FormatTurn is the annotation's value.
func FormatTurn(generation int64, turn Turn) string {
	return strconv.FormatInt(generation, 10) + ":" + string(turn)
}

// ParseTurn reads the turn of a generation; it is empty when none was given.
func ParseTurn(annotation string, generation int64) Turn {
	number, turn, ok := strings.Cut(annotation, ":")
	if !ok || number != strconv.FormatInt(generation, 10) {
		return ""
	}
	return Turn(turn)
}

// NodeFacts is one node that a policy selects, and what its enactment says of the policy's present generation.
type NodeFacts struct {
	Name  string
	Ready bool
	Phase Phase // Waiting when there is no enactment of this generation
	Turn  Turn
	Known bool // there is an enactment of this generation
}

// MaxUnavailable is how many of the nodes may be configuring or failed at once.
func MaxUnavailable(wanted *intstr.IntOrString, nodes int) int {
	if wanted != nil {
		if n, err := intstr.GetScaledValueFromIntOrPercent(wanted, nodes, true); err == nil {
			return max(n, 1)
		}
	}
	return max(int(math.Ceil(float64(nodes)/2)), 1)
}

// Turns decides who may go: nodes that wait get the free places, in the order of their names. A failed node keeps its place, which
// is what stops a bad policy; when all places are failed ones, nobody else is tried.
func Turns(nodes []NodeFacts, limit int) map[string]Turn {
	taken, failed := 0, 0
	for _, n := range nodes {
		if n.Turn == Go && n.Phase != Available {
			taken++
		}
		if n.Phase == Failing {
			failed++
		}
	}
	turns := map[string]Turn{}
	sorted := slices.SortedFunc(slices.Values(nodes), func(a, b NodeFacts) int { return strings.Compare(a.Name, b.Name) })
	for _, n := range sorted {
		switch {
		case !n.Known || n.Turn == Go || n.Turn == Abort:
		case failed >= limit:
			turns[n.Name] = Abort
		case taken < limit:
			turns[n.Name] = Go
			taken++
		case n.Turn == "":
			turns[n.Name] = Wait
		}
	}
	return turns
}

// Summary is what a policy's status says.
type Summary struct {
	Type        shared.ConditionType
	Reason      shared.ConditionReason
	Message     string
	Unavailable int
}

// Summarize sums a policy's enactments up.
func Summarize(nodes []NodeFacts) Summary {
	if len(nodes) == 0 {
		return Summary{Type: PolicyIgnored, Reason: shared.NodeNetworkConfigurationPolicyConditionConfigurationNoMatchingNode, Message: "Policy does not match any node"}
	}
	var ready, notReady, done, failed, aborted, pending, unavailable int
	for _, n := range nodes {
		if n.Turn == Go && n.Phase != Available {
			unavailable++
		}
		if !n.Ready {
			notReady++
			continue
		}
		ready++
		switch n.Phase {
		case Available:
			done++
		case Failing:
			failed++
		case Aborted:
			aborted++
		case Pending:
			pending++
		}
	}
	s := Summary{Unavailable: unavailable}
	finished := done + failed + aborted
	switch {
	case finished < ready || (ready == 0 && notReady > 0):
		s.Type, s.Reason = shared.NodeNetworkConfigurationPolicyConditionProgressing, shared.NodeNetworkConfigurationPolicyConditionConfigurationProgressing
		s.Message = fmt.Sprintf("Policy is progressing %d/%d nodes finished", finished, ready)
		if pending > 0 {
			s.Message += fmt.Sprintf(", %d pending", pending)
		}
	case failed+aborted > 0:
		s.Type, s.Reason = shared.NodeNetworkConfigurationPolicyConditionDegraded, shared.NodeNetworkConfigurationPolicyConditionFailedToConfigure
		s.Message = fmt.Sprintf("%d/%d nodes failed to configure", failed, ready)
		if aborted > 0 {
			s.Message += fmt.Sprintf(", %d nodes aborted configuration", aborted)
		}
	default:
		s.Type, s.Reason = shared.NodeNetworkConfigurationPolicyConditionAvailable, shared.NodeNetworkConfigurationPolicyConditionSuccessfullyConfigured
		s.Message = fmt.Sprintf("%d/%d nodes successfully configured", done, ready)
	}
	if notReady > 0 {
		s.Message += fmt.Sprintf(", %d nodes ignored due to NotReady state", notReady)
	}
	return s
}

// PolicyTypes are the conditions of a policy.
var PolicyTypes = []shared.ConditionType{
	shared.NodeNetworkConfigurationPolicyConditionAvailable, shared.NodeNetworkConfigurationPolicyConditionDegraded,
	shared.NodeNetworkConfigurationPolicyConditionProgressing, PolicyIgnored,
}

// Set writes a summary's conditions.
func (s Summary) Set(list *shared.ConditionList, now time.Time) {
	for _, kind := range PolicyTypes {
		if kind == s.Type {
			setCondition(list, kind, corev1.ConditionTrue, s.Reason, s.Message, now)
		} else {
			setCondition(list, kind, corev1.ConditionFalse, s.Reason, "", now)
		}
	}
}

// ResetPolicy makes all conditions Unknown: nothing is known of a new generation.
func ResetPolicy(list *shared.ConditionList, now time.Time) {
	for _, kind := range PolicyTypes {
		setCondition(list, kind, corev1.ConditionUnknown, "", "", now)
	}
}
