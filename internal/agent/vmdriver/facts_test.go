package vmdriver

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"patchbay/internal/qemu"
)

func TestHostname(t *testing.T) {
	for name, want := range map[string]string{
		"web-01":                "web-01",
		"web-01.shop":           "web-01",
		strings.Repeat("a", 70): strings.Repeat("a", 63),
		strings.Repeat("a", 62) + "-" + "bbbbbbbbb": strings.Repeat("a", 62),
	} {
		vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if got := hostname(vmi); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
		vmi.Spec.Hostname = "chosen"
		if got := hostname(vmi); got != "chosen" {
			t.Errorf("%q: %q", name, got)
		}
	}
}

func TestQueues(t *testing.T) {
	cases := []struct {
		name  string
		multi bool
		model string
		cpu   *virtv1.CPU
		limit string
		want  int
	}{
		{"not asked for", false, "", &virtv1.CPU{Cores: 4}, "", 1},
		{"one per CPU", true, "", &virtv1.CPU{Sockets: 2, Cores: 2, Threads: 2}, "", 8},
		{"unset counts are one", true, "virtio", &virtv1.CPU{Cores: 3}, "", 3},
		{"from resources", true, "", nil, "2500m", 3},
		{"default", true, "", nil, "", 1},
		{"device that cannot", true, "e1000e", &virtv1.CPU{Cores: 4}, "", 1},
		{"limit of the kernel", true, "", &virtv1.CPU{Cores: 400}, "", 256},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			vmi := &virtv1.VirtualMachineInstance{}
			vmi.Spec.Domain.Devices.NetworkInterfaceMultiQueue = &c.multi
			vmi.Spec.Domain.CPU = c.cpu
			if c.limit != "" {
				vmi.Spec.Domain.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(c.limit)}
			}
			if got := queuesOf(vmi, virtv1.Interface{Model: c.model}); got != c.want {
				t.Errorf("%d queues, want %d", got, c.want)
			}
		})
	}
}

func TestGuestMAC(t *testing.T) {
	vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{UID: "a"}}
	first, err := guestMAC(vmi, virtv1.Interface{Name: "default"})
	if err != nil || !strings.HasPrefix(first.String(), "52:54:00:") {
		t.Errorf("%s: %v", first, err)
	}
	if again, _ := guestMAC(vmi, virtv1.Interface{Name: "default"}); again.String() != first.String() {
		t.Errorf("%s and %s: a new agent would see another NIC", first, again)
	}
	if other, _ := guestMAC(vmi, virtv1.Interface{Name: "blue"}); other.String() == first.String() {
		t.Error("two NICs with one MAC address")
	}
	if chosen, err := guestMAC(vmi, virtv1.Interface{MacAddress: "DE-AD-00-00-BE-AF"}); err != nil || chosen.String() != "de:ad:00:00:be:af" {
		t.Errorf("%s: %v", chosen, err)
	}
	if _, err := guestMAC(vmi, virtv1.Interface{Name: "default", MacAddress: "no"}); err == nil {
		t.Error("a MAC address that is none")
	}
}

func TestMachineType(t *testing.T) {
	for want, args := range map[string][]string{
		"pc-q35-7.2": {"-name", "x", "-machine", "pc-q35-7.2,accel=tcg"},
		"q35":        {"-machine", "type=q35"},
		"":           {"-m", "64"},
	} {
		if got := machineTypeOf(args); got != want {
			t.Errorf("%v: %q", args, got)
		}
	}
}

func TestClaims(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	block := corev1.PersistentVolumeBlock
	claim := func(name string, mode *corev1.PersistentVolumeMode) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeMode: mode},
			Status:     corev1.PersistentVolumeClaimStatus{Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}
	}
	d := &Driver{Config: Config{Live: fake.NewClientBuilder().WithScheme(scheme).WithObjects(claim("files", nil), claim("device", &block)).Build()}}
	vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}}
	vmi.Spec.Volumes = []virtv1.Volume{
		{Name: "root", VolumeSource: virtv1.VolumeSource{DataVolume: &virtv1.DataVolumeSource{Name: "files"}}},
		{Name: "raw", VolumeSource: virtv1.VolumeSource{PersistentVolumeClaim: &virtv1.PersistentVolumeClaimVolumeSource{PersistentVolumeClaimVolumeSource: corev1.PersistentVolumeClaimVolumeSource{ClaimName: "device"}}}},
		{Name: "image", VolumeSource: virtv1.VolumeSource{ContainerDisk: &virtv1.ContainerDiskSource{}}},
	}
	claims, err := d.claims(t.Context(), vmi)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]qemu.Claim{"root": {SizeBytes: 1 << 30}, "raw": {Block: true, SizeBytes: 1 << 30}}, claims); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	vmi.Spec.Volumes[0].DataVolume.Name = "missing"
	if _, err := d.claims(t.Context(), vmi); err == nil || !strings.Contains(err.Error(), `volume "root": read claim missing`) {
		t.Errorf("a missing claim: %v", err)
	}
}
