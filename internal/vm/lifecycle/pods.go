package lifecycle

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/vm/launcherpod"
)

// meshProxy is the container of a service mesh. It may be slow to become ready, and the guest does not wait for it.
const meshProxy = "istio-proxy"

func isOver(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// isReady says whether the guest can be started in the pod. The compute container only has to run: its readiness probe, if
// there is one, asks the guest.
func isReady(pod *corev1.Pod) bool {
	if pod.Status.Phase != corev1.PodRunning || pod.Spec.NodeName == "" || len(pod.Status.ContainerStatuses) == 0 {
		return false
	}
	for _, c := range pod.Status.ContainerStatuses {
		mayBeUnready := c.Name == launcherpod.Container || c.Name == meshProxy
		if !c.Ready && !(mayBeUnready && c.State.Running != nil) {
			return false
		}
	}
	return true
}

// imageFault is why the kubelet cannot get an image; a containerDisk's image counts for the container that mounts it.
func imageFault(pod *corev1.Pod) (reason, message string) {
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if w := c.State.Waiting; w != nil && (w.Reason == reasonErrImagePull || w.Reason == reasonImagePullBackOff) {
			return w.Reason, w.Message
		}
	}
	return "", ""
}

// endTime is when the last container ended; the zero time when no container tells.
func endTime(pod *corev1.Pod) time.Time {
	var last time.Time
	for _, c := range pod.Status.ContainerStatuses {
		if t := c.State.Terminated; t != nil && t.FinishedAt.After(last) {
			last = t.FinishedAt.Time
		}
	}
	return last
}

// endMessage says why a pod ended.
func endMessage(pod *corev1.Pod) string {
	if pod.Status.Message != "" {
		return fmt.Sprintf("pod %s ended: %s", pod.Name, pod.Status.Message)
	}
	for _, c := range pod.Status.ContainerStatuses {
		if t := c.State.Terminated; t != nil && t.ExitCode != 0 {
			return fmt.Sprintf("container %s of pod %s ended with code %d: %s", c.Name, pod.Name, t.ExitCode, t.Reason)
		}
	}
	return fmt.Sprintf("pod %s ended", pod.Name)
}

func nodeAnswers(node *corev1.Node) bool {
	if node == nil {
		return false
	}
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func (s *vmiStep) setActivePods(active map[string]string) {
	pods := map[types.UID]string{}
	for uid, node := range active {
		pods[types.UID(uid)] = node
	}
	if len(pods) == 0 {
		pods = nil
	}
	if !maps.Equal(pods, s.vmi.Status.ActivePods) {
		s.vmi.Status.ActivePods = pods
	}
}

// syncPods keeps on the pods what others read there: the node's label, the readiness gate, the networks to be attached.
func (s *vmiStep) syncPods() {
	if s.pod == nil || s.pod.UID == "" || isOver(s.pod) { // without UID: it is only being made
		return
	}
	s.markOutdated()
	to := s.pod.DeepCopy()
	for _, key := range []string{virtv1.NodeNameLabel, virtv1.OutdatedLauncherImageLabel} {
		if v, ok := s.vmi.Labels[key]; ok {
			to.Labels[key] = v
		} else {
			delete(to.Labels, key)
		}
	}
	if s.vmi.IsRunning() && s.vmi.DeletionTimestamp == nil {
		s.syncNetworks(to)
	}
	if !equality.Semantic.DeepEqual(s.pod.ObjectMeta, to.ObjectMeta) {
		s.events = append(s.events, Patch{From: s.pod, To: to})
	}
	s.syncReadinessGate()
}

// markOutdated says on the instance that a newer launcher image is in use than its own.
func (s *vmiStep) markOutdated() {
	if s.pod.Spec.Containers[0].Image == s.view.Settings.Launcher.LauncherImage {
		delete(s.vmi.Labels, virtv1.OutdatedLauncherImageLabel)
		return
	}
	if s.vmi.Labels == nil {
		s.vmi.Labels = map[string]string{}
	}
	s.vmi.Labels[virtv1.OutdatedLauncherImageLabel] = ""
}

// hashedInterface is how the interfaces of secondary networks are named; other elements of the annotation are not ours.
var hashedInterface = regexp.MustCompile(`^pod[0-9a-f]{11}$`)

// syncNetworks asks for the networks of hot-plugged interfaces and no longer for those of unplugged ones. Elements that somebody
// else appended, such as a mesh's, stay.
func (s *vmiStep) syncNetworks(pod *corev1.Pod) {
	if s.view.OverlayFault != nil {
		return // what a plugged interface is to ask for is not known yet
	}
	wanted, err := launcherpod.NetworkAnnotation(s.view.Settings.Launcher, keepAttached(s.vmi), s.view.Overlay)
	if err != nil {
		s.warn(reasonHotPlugFailed, err)
		return
	}
	var elements, foreign []map[string]any
	if wanted != "" && json.Unmarshal([]byte(wanted), &elements) != nil {
		return
	}
	if current := pod.Annotations[nadv1.NetworkAttachmentAnnot]; current != "" {
		var old []map[string]any
		if json.Unmarshal([]byte(current), &old) != nil {
			return // a form that only others write: not ours to change
		}
		foreign = slices.DeleteFunc(slices.Clone(old), isOurs)
		keepRequests(elements, old)
		if equality.Semantic.DeepEqual(old, slices.Concat(elements, foreign)) {
			return
		}
	}
	merged := slices.Concat(elements, foreign)
	if len(merged) == 0 {
		delete(pod.Annotations, nadv1.NetworkAttachmentAnnot)
		return
	}
	if current := pod.Annotations[nadv1.NetworkAttachmentAnnot]; current == "" {
		pod.Annotations[nadv1.NetworkAttachmentAnnot] = wanted
		return
	}
	if text, err := json.Marshal(merged); err == nil {
		pod.Annotations[nadv1.NetworkAttachmentAnnot] = string(text)
	}
}

// keepRequests leaves what a pod asked for on a network as it was: its interface has been made from that.
func keepRequests(elements, old []map[string]any) {
	for i, e := range elements {
		for _, o := range old {
			if isOurs(o) && e["interface"] == o["interface"] && e["name"] == o["name"] && e["namespace"] == o["namespace"] {
				elements[i] = o
			}
		}
	}
}

func isOurs(element map[string]any) bool {
	if _, ok := element["cni-args"]; ok {
		return true
	}
	name, _ := element["interface"].(string)
	return hashedInterface.MatchString(name)
}

// syncReadinessGate lets the pod into Services while the guest runs, and takes it out while the guest is paused.
func (s *vmiStep) syncReadinessGate() {
	if !s.vmi.IsRunning() {
		return
	}
	wanted := corev1.PodCondition{
		Type: virtv1.VirtualMachineUnpaused, Status: corev1.ConditionTrue, Reason: reasonNotPaused, Message: textNotPaused,
		LastTransitionTime: metav1.NewTime(s.view.Now),
	}
	if vmiConditionIs(s.vmi, virtv1.VirtualMachineInstancePaused, corev1.ConditionTrue) {
		wanted.Status, wanted.Reason, wanted.Message = corev1.ConditionFalse, reasonPaused, textPaused
	}
	if old := podCondition(s.pod, wanted.Type); old != nil && old.Status == wanted.Status {
		return
	}
	to := s.pod.DeepCopy()
	if old := podCondition(to, wanted.Type); old != nil {
		*old = wanted
	} else {
		to.Status.Conditions = append(to.Status.Conditions, wanted)
	}
	s.events = append(s.events, Patch{From: s.pod, To: to, Status: true})
}
