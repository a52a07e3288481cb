package devices

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// bench is a node's directory for device plugins with a kubelet, and a directory of devices.
type bench struct {
	t       *testing.T
	kubelet *kubelet
	plugins string
	device  Device
	stop    func()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	plugins, err := os.MkdirTemp("", "plugins") // t.TempDir is too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(plugins) })
	path := filepath.Join(t.TempDir(), "kvm")
	return &bench{t: t, kubelet: newKubelet(t, plugins), plugins: plugins, device: Device{
		Resource: "devices.test/kvm", Path: path, Count: 3,
		Check: func() error { _, err := os.Stat(path); return err },
	}}
}

// appear makes the device work, and vanish the opposite.
func (b *bench) appear() {
	b.t.Helper()
	if err := os.WriteFile(b.device.Path, nil, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) vanish() {
	b.t.Helper()
	if err := os.Remove(b.device.Path); err != nil {
		b.t.Fatal(err)
	}
}

// begin starts a plugin.
func (b *bench) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	p := New(Config{Device: b.device, Dir: b.plugins})
	running.Go(func() {
		if err := p.Start(ctx); err != nil {
			b.t.Error(err)
		}
	})
	b.stop = func() { cancel(); running.Wait() }
	b.t.Cleanup(b.stop)
}

func devices(health string) []*api.Device {
	return []*api.Device{{ID: "kvm0", Health: health}, {ID: "kvm1", Health: health}, {ID: "kvm2", Health: health}}
}

func (b *bench) expect(list []*api.Device, health string) {
	b.t.Helper()
	if diff := cmp.Diff(devices(health), list, protocmp.Transform()); diff != "" {
		b.t.Fatalf("devices (-want +got):\n%s", diff)
	}
}

func TestAnnounceAndAllocate(t *testing.T) {
	b := newBench(t)
	b.appear()
	b.kubelet.start()
	b.begin()
	r, list := b.kubelet.registered()
	b.expect(list, api.Healthy)
	want := &api.RegisterRequest{
		Version: "v1beta1", ResourceName: "devices.test/kvm", Endpoint: r.request.Endpoint, Options: &api.DevicePluginOptions{},
	}
	if diff := cmp.Diff(want, r.request, protocmp.Transform()); diff != "" {
		t.Errorf("registration (-want +got):\n%s", diff)
	}
	got, err := r.plugin.Allocate(t.Context(), &api.AllocateRequest{ContainerRequests: []*api.ContainerAllocateRequest{
		{DevicesIds: []string{"kvm2"}}, {DevicesIds: []string{"kvm0"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	one := &api.ContainerAllocateResponse{Devices: []*api.DeviceSpec{{HostPath: b.device.Path, ContainerPath: b.device.Path, Permissions: "rw"}}}
	allocated := &api.AllocateResponse{ContainerResponses: []*api.ContainerAllocateResponse{one, one}}
	if diff := cmp.Diff(allocated, got, protocmp.Transform()); diff != "" {
		t.Errorf("allocation (-want +got):\n%s", diff)
	}
	b.stop()
	if left, _ := filepath.Glob(filepath.Join(b.plugins, "kvm-*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// A device that does not work is not announced; one that begins to, is. Afterwards its health follows.
func TestFollowsTheDevice(t *testing.T) {
	b := newBench(t)
	b.kubelet.start()
	checks := make(chan error, 16)
	check := b.device.Check
	b.device.Check = func() error { err := check(); checks <- err; return err }
	b.begin()
	if err := <-checks; err == nil {
		t.Fatal("the device works before it is there")
	}
	b.appear()
	r, list := b.kubelet.registered()
	b.expect(list, api.Healthy)
	b.vanish()
	b.expect(r.next(t), api.Unhealthy)
	b.appear()
	b.expect(r.next(t), api.Healthy)
	if n := len(b.kubelet.registrations); n != 0 {
		t.Errorf("%d more registrations; the first one stands", n)
	}
}

func TestAnnouncesToEveryKubelet(t *testing.T) {
	b := newBench(t)
	b.appear()
	// What a dead kubelet and a killed agent leave.
	for _, name := range []string{kubeletSocket, "kvm-0000"} {
		if err := os.WriteFile(filepath.Join(b.plugins, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.begin()
	b.kubelet.start()
	names := map[string]bool{}
	for range 3 {
		r, list := b.kubelet.registered()
		b.expect(list, api.Healthy)
		if names[r.request.Endpoint] {
			t.Errorf("socket %s is used twice", r.request.Endpoint)
		}
		names[r.request.Endpoint] = true
		b.kubelet.start()
	}
}

func TestTriesAgainWhenTheKubeletRefuses(t *testing.T) {
	b := newBench(t)
	b.appear()
	b.kubelet.refuse.Store(3)
	b.kubelet.start()
	b.begin()
	_, list := b.kubelet.registered()
	b.expect(list, api.Healthy)
}

func TestCheckKVM(t *testing.T) {
	const flags = "processor\t: 0\nflags\t\t: fpu sse %s lm\n"
	for name, c := range map[string]struct {
		device  bool
		cpuinfo string
		want    string // part of the error; empty: it works
	}{
		"Intel":             {true, strings.ReplaceAll(flags, "%s", "vmx"), ""},
		"AMD":               {true, strings.ReplaceAll(flags, "%s", "svm"), ""},
		"no device":         {false, strings.ReplaceAll(flags, "%s", "vmx"), "is virtualization switched on"},
		"cannot run guests": {true, strings.ReplaceAll(flags, "%s", "vmx_like"), "neither vmx nor svm"},
		"no flags":          {true, "processor\t: 0\n", "neither vmx nor svm"},
		"a bug of it":       {true, "flags\t: fpu\nvmx flags\t: vmx\nbugs\t: svm\n", "neither vmx nor svm"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			device, cpuinfo := filepath.Join(dir, "kvm"), filepath.Join(dir, "cpuinfo")
			if c.device {
				if err := os.WriteFile(device, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(cpuinfo, []byte(c.cpuinfo), 0o600); err != nil {
				t.Fatal(err)
			}
			err := checkKVM(device, cpuinfo)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if !c.device && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("error %v does not say what is missing", err)
			}
		})
	}
}
