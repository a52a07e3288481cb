package vm

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// machine is a small virtual machine on the pod network.
func (s *site) machine(name string, strategy virtv1.VirtualMachineRunStrategy) *virtv1.VirtualMachine {
	memory := resource.MustParse("64Mi")
	vm := &virtv1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.namespace, Labels: map[string]string{"of": "machine"}}}
	vm.Spec.RunStrategy = &strategy
	vm.Spec.Template = &virtv1.VirtualMachineInstanceTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{
			Labels:      map[string]string{"special": "key"},
			Annotations: map[string]string{"cni.example/address": "192.0.2.7"},
		},
		Spec: virtv1.VirtualMachineInstanceSpec{Domain: virtv1.DomainSpec{
			Memory:   &virtv1.Memory{Guest: &memory},
			Firmware: &virtv1.Firmware{UUID: "5d307ca9-b3ef-428c-8861-06e72d69f223"},
		}},
	}
	return vm
}

func TestLifeCycle(t *testing.T) {
	s := newSite(t, map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
	s.controllers()
	s.create(s.machine("web", virtv1.RunStrategyAlways))
	s.shows("web", virtv1.VirtualMachineStatusRunning)
	s.eventually(func() string {
		if vm := s.vm("web"); !vm.Status.Ready || !vm.Status.Created {
			return fmt.Sprintf("status %+v is not ready", vm.Status)
		}
		return ""
	})
	first := s.instance("web")
	checkInstance(t, s, first)
	checkPod(t, s, first)

	s.change("web", false, func(vm *virtv1.VirtualMachine) { vm.Spec.RunStrategy = new(virtv1.RunStrategyHalted) })
	s.shows("web", virtv1.VirtualMachineStatusStopped)
	if vmi, pods := s.instance("web"), s.pods(); vmi != nil || len(pods) != 0 {
		t.Errorf("stopped machine has instance %v and %d pods", vmi, len(pods))
	}

	s.change("web", false, func(vm *virtv1.VirtualMachine) { vm.Spec.RunStrategy = new(virtv1.RunStrategyAlways) })
	s.shows("web", virtv1.VirtualMachineStatusRunning)
	second := s.instance("web")
	s.change("web", true, func(vm *virtv1.VirtualMachine) {
		vm.Status.StateChangeRequests = []virtv1.VirtualMachineStateChangeRequest{
			{Action: virtv1.StopRequest, UID: &second.UID}, {Action: virtv1.StartRequest},
		}
	})
	s.eventually(func() string {
		vmi := s.instance("web")
		if vmi == nil || vmi.UID == second.UID || vmi.Status.Phase != virtv1.Running {
			return "the machine is not restarted"
		}
		return ""
	})
	s.shows("web", virtv1.VirtualMachineStatusRunning)
	if requests := s.vm("web").Status.StateChangeRequests; len(requests) != 0 {
		t.Errorf("requests %v are left", requests)
	}
	checkEvents(t, s)

	if err := s.client.Delete(t.Context(), s.vm("web")); err != nil {
		t.Fatal(err)
	}
	s.gone("web")
}

// gone waits until nothing of a machine is left.
func (s *site) gone(name string) {
	s.t.Helper()
	s.eventually(func() string {
		err := s.client.Get(s.t.Context(), client.ObjectKey{Namespace: s.namespace, Name: name}, &virtv1.VirtualMachine{})
		if err == nil || client.IgnoreNotFound(err) != nil {
			return fmt.Sprintf("the machine is still there (%v)", err)
		}
		if vmi, pods := s.instance(name), s.pods(); vmi != nil || len(pods) > 0 {
			return fmt.Sprintf("instance %v and %d pods are left", vmi, len(pods))
		}
		return ""
	})
}

func checkInstance(t *testing.T, s *site, vmi *virtv1.VirtualMachineInstance) {
	t.Helper()
	vm := s.vm("web")
	if !metav1.IsControlledBy(vmi, vm) {
		t.Error("the instance is not the machine's")
	}
	if got := vmi.Labels["special"]; got != "key" {
		t.Errorf("label special is %q: labels of the template must pass", got)
	}
	if _, ok := vmi.Labels["of"]; ok {
		t.Error("labels of the machine itself must not pass")
	}
	if want := fmt.Sprintf("revision-start-vm-%s-%d", vm.UID, 1); vmi.Status.VirtualMachineRevisionName != want {
		t.Errorf("revision %q, want %q", vmi.Status.VirtualMachineRevisionName, want)
	}
	if got := vmi.Annotations[virtv1.VirtualMachineGenerationAnnotation]; got != "1" {
		t.Errorf("generation annotation %q, want 1", got)
	}
	if vmi.Status.NodeName != "node-1" || vmi.Labels[virtv1.NodeNameLabel] != "node-1" {
		t.Errorf("node %q, label %q: want node-1 twice", vmi.Status.NodeName, vmi.Labels[virtv1.NodeNameLabel])
	}
	if n := vmi.Spec.Domain.Devices.Interfaces; len(n) != 1 || n[0].Masquerade == nil {
		t.Errorf("interfaces %v: want one with masquerade", n)
	}
	if len(vm.Spec.Template.Spec.Domain.Devices.Interfaces) != 0 {
		t.Error("the default interface must not be written into the machine")
	}
	if len(vmi.Status.Interfaces) != 1 {
		t.Errorf("the agent's interface status was lost: %v", vmi.Status.Interfaces)
	}
	var phases []string
	for _, p := range vmi.Status.PhaseTransitionTimestamps {
		phases = append(phases, string(p.Phase))
	}
	if got := strings.Join(phases, " "); got != "Pending Scheduling Scheduled Running" {
		t.Errorf("phases %q", got)
	}
}

func checkPod(t *testing.T, s *site, vmi *virtv1.VirtualMachineInstance) {
	t.Helper()
	pods := s.pods()
	if len(pods) != 1 {
		t.Fatalf("%d pods, want 1", len(pods))
	}
	want := map[string]string{
		"special": "key", "kubevirt.io": "virt-launcher", "kubevirt.io/created-by": string(vmi.UID), "kubevirt.io/nodeName": "node-1",
		"vm.kubevirt.io/name": "web", "vmi.kubevirt.io/id": "web",
	}
	for key, value := range want {
		if got := pods[0].Labels[key]; got != value {
			t.Errorf("pod label %s is %q, want %q", key, got, value)
		}
	}
	if got := pods[0].Annotations["cni.example/address"]; got != "192.0.2.7" {
		t.Errorf("CNI annotation %q did not pass", got)
	}
}

func checkEvents(t *testing.T, s *site) {
	t.Helper()
	want := map[string]string{
		"VirtualMachine SuccessfulCreate":         "Started the virtual machine by creating the new virtual machine instance web",
		"VirtualMachine SuccessfulDelete":         "Stopped the virtual machine by deleting the virtual machine instance web",
		"VirtualMachineInstance SuccessfulCreate": "Created virtual machine pod virt-launcher-web-",
		"VirtualMachineInstance SuccessfulDelete": "Deleted virtual machine pod virt-launcher-web-",
	}
	s.eventually(func() string {
		var list corev1.EventList
		if err := s.client.List(t.Context(), &list, client.InNamespace(s.namespace)); err != nil {
			return err.Error()
		}
		found := map[string]bool{}
		for _, e := range list.Items {
			key := e.InvolvedObject.Kind + " " + e.Reason
			if text, ok := want[key]; ok && strings.HasPrefix(e.Message, text) {
				found[key] = true
			}
		}
		if len(found) < len(want) {
			return fmt.Sprintf("of the events %v only %v were seen", want, found)
		}
		return ""
	})
}

// TestKilled ends the controllers after each of their writes in turn. New ones take over and make nothing twice.
func TestKilled(t *testing.T) {
	for writes := range int64(12) {
		t.Run(fmt.Sprintf("after %d writes", writes), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, nil)
			wrap, dead := dying(writes)
			stop := s.controllers(wrap)
			s.create(s.machine("web", virtv1.RunStrategyOnce))
			select {
			case <-dead:
			case <-time.After(patience):
				t.Fatal("the controllers came to rest before they could be killed")
			}
			stop()
			s.controllers()
			s.shows("web", virtv1.VirtualMachineStatusRunning)
			vmi := s.instance("web")
			if pods := s.pods(); len(pods) != 1 || !metav1.IsControlledBy(&pods[0], vmi) {
				t.Errorf("%d pods, want the one of instance %s", len(pods), vmi.UID)
			}
			if n := s.created("VirtualMachineInstance"); n > 1 {
				t.Errorf("the pod was made %d times", n)
			}
			if err := s.client.Delete(t.Context(), s.vm("web")); err != nil {
				t.Fatal(err)
			}
			s.gone("web")
		})
	}
}

// created counts the objects whose creation was told of on a kind.
func (s *site) created(kind string) int {
	s.t.Helper()
	var list corev1.EventList
	if err := s.client.List(s.t.Context(), &list, client.InNamespace(s.namespace)); err != nil {
		s.t.Fatal(err)
	}
	messages := map[string]bool{}
	for _, e := range list.Items {
		if e.InvolvedObject.Kind == kind && e.Reason == "SuccessfulCreate" {
			messages[e.Message] = true
		}
	}
	return len(messages)
}

// TestKilledWhileDeleting does the same to the deletion of a running machine.
func TestKilledWhileDeleting(t *testing.T) {
	for writes := range int64(6) {
		t.Run(fmt.Sprintf("after %d writes", writes), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, nil)
			stop := s.controllers()
			s.create(s.machine("web", virtv1.RunStrategyAlways))
			s.eventually(func() string {
				if !s.vm("web").Status.Ready {
					return "not ready"
				}
				return ""
			})
			stop()
			wrap, dead := dying(writes)
			stop = s.controllers(wrap)
			if err := s.client.Delete(t.Context(), s.vm("web")); err != nil {
				t.Fatal(err)
			}
			select {
			case <-dead:
			case <-time.After(patience):
				t.Fatal("the controllers came to rest before they could be killed")
			}
			stop()
			s.controllers()
			s.gone("web")
		})
	}
}

// TestMany starts a hundred machines at once: no request may grow with their number.
func TestMany(t *testing.T) {
	const count = 100
	s := newSite(t, nil)
	asked := &requests{counts: map[string]int{}}
	c := rest.CopyConfig(control.Config)
	c.Wrap(asked.wrap)
	s.run(c, func(mgr ctrl.Manager) error {
		return SetupWithManager(mgr, Config{LauncherImage: "patchbay.io/launcher:test"})
	})
	begin := time.Now()
	for i := range count {
		s.create(s.machine(fmt.Sprintf("vm-%03d", i), virtv1.RunStrategyAlways))
	}
	s.eventually(func() string {
		var list virtv1.VirtualMachineList
		if err := s.client.List(t.Context(), &list, client.InNamespace(s.namespace)); err != nil {
			return err.Error()
		}
		ready := 0
		for _, vm := range list.Items {
			if vm.Status.Ready {
				ready++
			}
		}
		if ready < count {
			return fmt.Sprintf("%d of %d machines are ready", ready, count)
		}
		return ""
	})
	t.Logf("%d machines ready after %v; requests %v", count, time.Since(begin).Round(time.Millisecond), asked.counts)
	if n := len(s.pods()); n != count {
		t.Errorf("%d pods, want %d", n, count)
	}
	asked.mu.Lock()
	defer asked.mu.Unlock()
	if lists := asked.counts["LIST"]; lists > 20 { // the informers', when they start
		t.Errorf("%d lists for %d machines", lists, count)
	}
}

func TestRefusedPod(t *testing.T) {
	s := newSite(t, map[string]string{"pod-security.kubernetes.io/enforce": "baseline"})
	s.controllers()
	vm := s.machine("web", virtv1.RunStrategyAlways)
	vm.Spec.Template.Spec.Volumes = []virtv1.Volume{{Name: "host", VolumeSource: virtv1.VolumeSource{
		HostDisk: &virtv1.HostDisk{Path: "/srv/disk.img", Type: virtv1.HostDiskExists},
	}}}
	s.create(vm)
	s.eventually(func() string {
		for _, c := range s.vm("web").Status.Conditions {
			if c.Type == virtv1.VirtualMachineFailure && c.Reason == "FailedCreate" && strings.Contains(c.Message, "hostPath") {
				return ""
			}
		}
		return fmt.Sprintf("conditions %v do not tell that the pod was refused", s.vm("web").Status.Conditions)
	})
}

func TestMissingClaimAndNetwork(t *testing.T) {
	s := newSite(t, nil)
	s.startGuests.Store(false)
	s.controllers()
	vm := s.machine("web", virtv1.RunStrategyAlways)
	vm.Spec.Template.Spec.Volumes = []virtv1.Volume{{Name: "data", VolumeSource: virtv1.VolumeSource{
		PersistentVolumeClaim: &virtv1.PersistentVolumeClaimVolumeSource{
			PersistentVolumeClaimVolumeSource: corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"},
		},
	}}}
	s.create(vm)
	s.shows("web", virtv1.VirtualMachineStatusPvcNotFound)
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data", Namespace: s.namespace}}
	claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	claim.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	s.create(claim)
	s.shows("web", virtv1.VirtualMachineStatusWaitingForVolumeBinding)
	claim.Status.Phase = corev1.ClaimBound
	if err := s.client.Status().Update(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	s.shows("web", virtv1.VirtualMachineStatusStarting)

	other := s.machine("router", virtv1.RunStrategyAlways)
	other.Spec.Template.Spec.Networks = []virtv1.Network{{Name: "blue", NetworkSource: virtv1.NetworkSource{
		Multus: &virtv1.MultusNetwork{NetworkName: "blue-l2"},
	}}}
	other.Spec.Template.Spec.Domain.Devices.Interfaces = []virtv1.Interface{{Name: "blue", InterfaceBindingMethod: virtv1.InterfaceBindingMethod{
		Bridge: &virtv1.InterfaceBridge{},
	}}}
	s.create(other)
	want := "failed to locate network attachment definition " + s.namespace + "/blue-l2"
	s.eventually(func() string {
		for _, c := range s.vm("router").Status.Conditions {
			if c.Type == virtv1.VirtualMachineFailure && c.Message == want {
				return ""
			}
		}
		return fmt.Sprintf("no condition says %q: %v", want, s.vm("router").Status.Conditions)
	})
}

func TestRestartRequired(t *testing.T) {
	s := newSite(t, nil)
	s.controllers()
	s.create(s.machine("web", virtv1.RunStrategyAlways))
	s.shows("web", virtv1.VirtualMachineStatusRunning)
	required := func() string {
		for _, c := range s.vm("web").Status.Conditions {
			if c.Type == virtv1.VirtualMachineRestartRequired {
				return string(c.Status)
			}
		}
		return "absent"
	}
	memory := func(text string) func(*virtv1.VirtualMachine) {
		q := resource.MustParse(text)
		return func(vm *virtv1.VirtualMachine) { vm.Spec.Template.Spec.Domain.Memory.Guest = &q }
	}
	s.change("web", false, memory("128Mi"))
	s.eventually(func() string {
		if got := required(); got != "True" {
			return "RestartRequired is " + got
		}
		return ""
	})
	s.change("web", false, memory("64Mi"))
	s.eventually(func() string {
		if got := required(); got != "absent" {
			return "RestartRequired is " + got + " after the edit was taken back"
		}
		return ""
	})
}

func TestInstanceOfAnotherOwner(t *testing.T) {
	s := newSite(t, nil)
	s.startGuests.Store(false)
	s.controllers()
	vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: s.namespace}}
	vmi.OwnerReferences = []metav1.OwnerReference{{APIVersion: "example/v1", Kind: "Pool", Name: "p", UID: types.UID("1"), Controller: new(true)}}
	vmi.Spec = s.machine("web", virtv1.RunStrategyAlways).Spec.Template.Spec
	s.create(vmi)
	s.create(s.machine("web", virtv1.RunStrategyAlways))
	s.eventually(func() string {
		for _, c := range s.vm("web").Status.Conditions {
			if c.Type == virtv1.VirtualMachineFailure && strings.Contains(c.Message, "belongs to Pool p") {
				return ""
			}
		}
		return "no condition names the other owner"
	})
}
