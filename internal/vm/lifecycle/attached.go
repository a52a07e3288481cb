package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/podnetworks"
	"patchbay/internal/vm/launcherpod"
)

// Sources of what status.interfaces says. The node's agent writes the others.
const (
	fromPod    = "multus-status"
	fromDomain = "domain"
)

// attached is one element of the annotation by which a pod says to which networks it is attached.
type attached struct {
	Name      string `json:"name"`
	Interface string `json:"interface"`
	Default   bool   `json:"default"`
}

func attachments(pod *corev1.Pod) (list []attached, ok bool) {
	text, ok := pod.Annotations[nadv1.NetworkStatusAnnot]
	if !ok || json.Unmarshal([]byte(text), &list) != nil {
		return nil, false
	}
	return list, true
}

// followAttachments shows in status.interfaces which networks the pod is attached to. What the node's agent says there stays.
func (s *vmiStep) followAttachments() {
	if s.pod == nil || s.vmi.IsFinal() {
		return
	}
	list, ok := attachments(s.pod)
	if !ok {
		return
	}
	s.showPrimary(list)
	attached := map[string]string{}
	for _, n := range s.vmi.Spec.Networks {
		if device, ok := deviceOf(n, list); ok {
			attached[n.Name] = device
		}
	}
	status := &s.vmi.Status
	status.Interfaces = slices.Clone(status.Interfaces)
	for _, n := range s.vmi.Spec.Networks {
		if device, ok := attached[n.Name]; ok && !isPrimary(n) {
			markAttached(status, n.Name, device)
		}
	}
	for i := range status.Interfaces {
		if _, ok := attached[status.Interfaces[i].Name]; !ok {
			setSource(&status.Interfaces[i], fromPod, false)
		}
	}
	// An interface that is neither in the pod nor in the guest any more is history.
	status.Interfaces = slices.DeleteFunc(status.Interfaces, func(i virtv1.VirtualMachineInstanceNetworkInterface) bool {
		n := indexNetwork(s.vmi.Spec.Networks, i.Name)
		return n >= 0 && !isPrimary(s.vmi.Spec.Networks[n]) && i.InfoSource == ""
	})
}

// isPrimary says whether a network is the pod's own.
func isPrimary(n virtv1.Network) bool { return n.Pod != nil || n.Multus != nil && n.Multus.Default }

// showPrimary makes sure that the primary interface is there and first, before anything else is known of it.
func (s *vmiStep) showPrimary(list []attached) {
	status := &s.vmi.Status
	n := slices.IndexFunc(s.vmi.Spec.Networks, isPrimary)
	if n < 0 || hasInterfaceStatus(s.vmi, s.vmi.Spec.Networks[n].Name) {
		return
	}
	device := ""
	if i := slices.IndexFunc(list, func(a attached) bool { return a.Default }); i >= 0 {
		device = list[i].Interface
	}
	first := virtv1.VirtualMachineInstanceNetworkInterface{Name: s.vmi.Spec.Networks[n].Name, PodInterfaceName: device}
	status.Interfaces = append([]virtv1.VirtualMachineInstanceNetworkInterface{first}, status.Interfaces...)
}

// deviceOf finds a secondary network among the pod's attachments.
func deviceOf(n virtv1.Network, list []attached) (device string, ok bool) {
	if isPrimary(n) {
		return "", false
	}
	want := podnetworks.InterfaceName(n.Name)
	return want, slices.ContainsFunc(list, func(a attached) bool { return a.Interface == want })
}

func markAttached(status *virtv1.VirtualMachineInstanceStatus, name, device string) {
	i := slices.IndexFunc(status.Interfaces, func(i virtv1.VirtualMachineInstanceNetworkInterface) bool { return i.Name == name })
	if i < 0 {
		status.Interfaces = append(status.Interfaces, virtv1.VirtualMachineInstanceNetworkInterface{Name: name})
		i = len(status.Interfaces) - 1
	}
	if status.Interfaces[i].PodInterfaceName == "" {
		status.Interfaces[i].PodInterfaceName = device
	}
	setSource(&status.Interfaces[i], fromPod, true)
}

func setSource(i *virtv1.VirtualMachineInstanceNetworkInterface, source string, is bool) {
	var sources []string
	if i.InfoSource != "" {
		sources = strings.Split(i.InfoSource, ", ")
	}
	if slices.Contains(sources, source) == is {
		return
	}
	if is {
		sources = append(sources, source)
	} else {
		sources = slices.DeleteFunc(sources, func(s string) bool { return s == source })
	}
	i.InfoSource = strings.Join(sources, ", ")
}

// inGuest says whether the guest has the interface's card, as far as is known.
func inGuest(vmi *virtv1.VirtualMachineInstance, name string) bool {
	return slices.ContainsFunc(vmi.Status.Interfaces, func(i virtv1.VirtualMachineInstanceNetworkInterface) bool {
		return i.Name == name && slices.Contains(strings.Split(i.InfoSource, ", "), fromDomain)
	})
}

// keepAttached is the instance as its pod's networks are to see it: an absent interface leaves the guest first and the pod afterwards.
func keepAttached(vmi *virtv1.VirtualMachineInstance) *virtv1.VirtualMachineInstance {
	kept := vmi.DeepCopy()
	for n, i := range kept.Spec.Domain.Devices.Interfaces {
		if i.State == virtv1.InterfaceStateAbsent && inGuest(vmi, i.Name) {
			kept.Spec.Domain.Devices.Interfaces[n].State = ""
		}
	}
	return kept
}

// inPlaceLimit is how long a card may take to be plugged or unplugged in place before a migration is the better way.
const inPlaceLimit = 15 * time.Second

// markMigrationRequired says in the condition MigrationRequired that cards are being plugged or unplugged, and when that has taken so
// long that a migration would help: its target starts with the cards that it is to have. Nothing helps while a network does not exist.
func (s *vmiStep) markMigrationRequired() {
	const kind = virtv1.VirtualMachineInstanceMigrationRequired
	if !s.vmi.IsRunning() || isMigrating(s.vmi) || !Plugging(s.vmi) {
		removeVMICondition(s.vmi, kind)
		return
	}
	now := metav1.NewTime(s.view.Now)
	c := vmiCondition(s.vmi, kind)
	missing := s.missingNetwork()
	if c != nil && c.Status == corev1.ConditionTrue {
		return
	}
	if c == nil || missing != "" || c.Message != textPluggingInPlace {
		s.markPlugging(missing)
		return
	}
	if wait := c.LastTransitionTime.Add(inPlaceLimit).Sub(s.view.Now); wait > 0 {
		s.after = sooner(s.after, wait)
		return
	}
	if !s.vmi.IsMigratable() {
		return
	}
	setVMICondition(s.vmi, now, virtv1.VirtualMachineInstanceCondition{
		Type: kind, Status: corev1.ConditionTrue, Reason: virtv1.VirtualMachineInstanceReasonAutoMigrationDueToLiveUpdate, Message: textPlugByMigration,
	})
}

// markPlugging says that cards are being plugged, or what they wait for. The time that it may take begins when nothing is missing.
func (s *vmiStep) markPlugging(missing string) {
	const kind = virtv1.VirtualMachineInstanceMigrationRequired
	message, look := textPluggingInPlace, inPlaceLimit
	if missing != "" {
		message, look = missing, createRetry
	}
	s.after = sooner(s.after, look)
	if c := vmiCondition(s.vmi, kind); c != nil && c.Message == message {
		return
	}
	if missing != "" {
		s.warn(reasonHotPlugFailed, errors.New(missing))
	}
	removeVMICondition(s.vmi, kind)
	setVMICondition(s.vmi, metav1.NewTime(s.view.Now), virtv1.VirtualMachineInstanceCondition{
		Type: kind, Status: corev1.ConditionFalse, Reason: virtv1.VirtualMachineInstanceReasonAutoMigrationPending, Message: message,
	})
}

// missingNetwork is why an interface cannot be plugged: its network does not exist. Empty: all are there.
func (s *vmiStep) missingNetwork() string {
	for _, i := range s.vmi.Spec.Domain.Devices.Interfaces {
		n := indexNetwork(s.vmi.Spec.Networks, i.Name)
		if n < 0 || s.vmi.Spec.Networks[n].Multus == nil || i.State == virtv1.InterfaceStateAbsent || inGuest(s.vmi, i.Name) {
			continue
		}
		namespace, name := launcherpod.AttachmentKey(s.vmi.Namespace, s.vmi.Spec.Networks[n].Multus.NetworkName)
		if key := namespace + "/" + name; !has(s.view.Networks, key) {
			return fmt.Sprintf("interface %s: %v", i.Name, launcherpod.NetworkNotFoundError(key))
		}
	}
	return ""
}

// Plugging says whether the guest's cards are not yet what they should be.
func Plugging(vmi *virtv1.VirtualMachineInstance) bool {
	return slices.ContainsFunc(vmi.Spec.Domain.Devices.Interfaces, func(i virtv1.Interface) bool {
		n := indexNetwork(vmi.Spec.Networks, i.Name)
		if i.Bridge == nil || n < 0 || isPrimary(vmi.Spec.Networks[n]) {
			return false // such a one is never plugged
		}
		return (i.State == virtv1.InterfaceStateAbsent) == inGuest(vmi, i.Name)
	})
}
