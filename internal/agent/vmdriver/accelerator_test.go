package vmdriver

import (
	"errors"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/qemu"
)

// openNull stands for the kernel's virtio backend.
func openNull() (*os.File, error) { return os.OpenFile(os.DevNull, os.O_RDWR, 0) }

func withKVM(pod *corev1.Pod) {
	one := corev1.ResourceList{qemu.KVMResource: resource.MustParse("1")}
	pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: one, Limits: one}
}

// What executes a guest follows from its pod alone, whatever the node could do; the kernel's virtio backend goes with KVM.
func TestAcceleratorFollowsThePod(t *testing.T) {
	for name, c := range map[string]struct {
		pod   []func(*corev1.Pod)
		args  []string
		not   string
		files int
	}{
		"the pod has the device":    {[]func(*corev1.Pod){withKVM}, []string{"-accel kvm", "vhost=on,vhostfd={fd:1}"}, "tcg", 2},
		"the pod has no such thing": {nil, []string{"-accel tcg", "vhost=off"}, "kvm", 1},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil, c.pod...)
			n.waitPhase(virtv1.Running)
			n.pod.mu.Lock()
			defer n.pod.mu.Unlock()
			for _, part := range c.args {
				if !strings.Contains(n.pod.args, part) {
					t.Errorf("no %q in %s", part, n.pod.args)
				}
			}
			if strings.Contains(n.pod.args, "-accel "+c.not) || n.pod.files != c.files {
				t.Errorf("%d descriptors, arguments %s", n.pod.files, n.pod.args)
			}
		})
	}
}

func TestOpenVhost(t *testing.T) {
	nic := func(model string, queues int, offloads bool) card {
		c := card{NIC: NIC{Interface: virtv1.Interface{Model: model}}, Wired: &Wired{Offloads: offloads}}
		for range queues {
			file, err := openNull()
			if err != nil {
				t.Fatal(err)
			}
			c.Files = append(c.Files, file)
		}
		return c
	}
	refuse := func() func() (*os.File, error) {
		calls := 0
		return func() (*os.File, error) {
			if calls++; calls > 3 {
				return nil, errors.New("too many open files")
			}
			return openNull()
		}
	}
	for name, c := range map[string]struct {
		cards cards
		open  func() (*os.File, error)
		want  []int // backends of each card
	}{
		"every virtio NIC":         {cards{nic("", 1, true), nic(virtv1.VirtIO, 4, true)}, openNull, []int{1, 4}},
		"not an emulated one":      {cards{nic("e1000e", 1, true), nic("", 1, true)}, openNull, []int{0, 1}},
		"not before a user space":  {cards{nic("", 1, false)}, openNull, []int{0}},
		"not without a tap":        {cards{nic("", 0, true)}, openNull, []int{0}},
		"the node has none":        {cards{nic("", 1, true)}, nil, []int{0}},
		"all or none of a NIC":     {cards{nic("", 2, true), nic("", 2, true)}, refuse(), []int{2, 0}},
		"as many as a message has": {cards{nic("", 120, true), nic("", 10, true), nic("", 3, true)}, openNull, []int{120, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			defer c.cards.discard()
			c.cards.openVhost(c.open)
			_, files := c.cards.plan()
			total := 0
			for n, card := range c.cards {
				total += len(card.Files) + len(card.Vhost)
				if len(card.Vhost) != c.want[n] {
					t.Errorf("NIC %d has %d backends, want %d", n, len(card.Vhost), c.want[n])
				}
			}
			if len(files) != total || len(files) > maxFiles {
				t.Errorf("%d descriptors are sent, want %d", len(files), total)
			}
		})
	}
}
