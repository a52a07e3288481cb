package devices

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// kubelet is the kubelet's side of device plugins, as far as a plugin can tell: it calls back during registration, follows the
// list of devices, and clears its directory of sockets when it starts.
type kubelet struct {
	t       *testing.T
	dir     string
	running sync.WaitGroup
	server  *grpc.Server
	refuse  atomic.Int32 // so many registrations

	registrations chan registration // with this server
}

// registration is a plugin that has registered.
type registration struct {
	request *api.RegisterRequest
	plugin  api.DevicePluginClient
	lists   chan []*api.Device // closed when the plugin has gone
}

func newKubelet(t *testing.T, dir string) *kubelet {
	k := &kubelet{t: t, dir: dir}
	t.Cleanup(k.stop)
	return k
}

// start is the start of a kubelet; the one before it ends.
func (k *kubelet) start() {
	k.t.Helper()
	if k.server != nil {
		k.server.Stop()
	}
	sockets, err := os.ReadDir(k.dir)
	if err != nil {
		k.t.Fatal(err)
	}
	for _, s := range sockets {
		if err := os.Remove(filepath.Join(k.dir, s.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			k.t.Fatal(err)
		}
	}
	listener, err := net.Listen("unix", filepath.Join(k.dir, kubeletSocket))
	if err != nil {
		k.t.Fatal(err)
	}
	k.server, k.registrations = grpc.NewServer(), make(chan registration, 8)
	api.RegisterRegistrationServer(k.server, &registrar{kubelet: k, to: k.registrations})
	server := k.server
	k.running.Go(func() { _ = server.Serve(listener) })
}

func (k *kubelet) stop() {
	if k.server != nil {
		k.server.Stop()
	}
	k.running.Wait()
}

// registrar is one kubelet's registration server.
type registrar struct {
	api.UnimplementedRegistrationServer
	*kubelet
	to chan<- registration
}

// Register implements the plugin's interface.
func (k *registrar) Register(_ context.Context, request *api.RegisterRequest) (*api.Empty, error) {
	if k.refuse.Add(-1) >= 0 {
		return nil, errors.New("not now")
	}
	conn, err := grpc.NewClient("unix:"+filepath.Join(k.dir, request.Endpoint), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	r := registration{request: request, plugin: api.NewDevicePluginClient(conn), lists: make(chan []*api.Device, 8)}
	if _, err := r.plugin.GetDevicePluginOptions(k.t.Context(), &api.Empty{}); err != nil {
		return nil, err
	}
	stream, err := r.plugin.ListAndWatch(k.t.Context(), &api.Empty{})
	if err != nil {
		return nil, err
	}
	k.running.Go(func() {
		defer conn.Close()
		defer close(r.lists)
		for {
			list, err := stream.Recv()
			if err != nil {
				return
			}
			r.lists <- list.Devices
		}
	})
	k.to <- r
	return &api.Empty{}, nil
}

// patience is how long something may take that is sure to happen.
const patience = 30 * time.Second

// registered waits for a registration with this kubelet, and for its first list. One that was withdrawn at once does not count: the
// plugin heard of the kubelet's start after it had registered.
func (k *kubelet) registered() (registration, []*api.Device) {
	k.t.Helper()
	late := time.After(patience)
	for {
		select {
		case r := <-k.registrations:
			if list, ok := <-r.lists; ok {
				return r, list
			}
		case <-late:
			k.t.Fatal("no plugin registers")
		}
	}
}

// next waits for the next list.
func (r registration) next(t *testing.T) []*api.Device {
	t.Helper()
	select {
	case list, ok := <-r.lists:
		if !ok {
			t.Fatal("the plugin is gone")
		}
		return list
	case <-time.After(patience):
		t.Fatal("no list of devices comes")
		return nil
	}
}
