package devices

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// offer is a server that one kubelet knows.
type offer struct {
	api.UnimplementedDevicePluginServer
	device  Device
	health  *health
	server  *grpc.Server
	serving sync.WaitGroup
}

// registerLimit is how long a kubelet may take to call back.
const registerLimit = 15 * time.Second

// newOffer serves a device and registers with the kubelet that is running.
func newOffer(ctx context.Context, device Device, dir, prefix string, health *health) (*offer, error) {
	// A name that was never used: a kubelet (1.37) to which a known name registers before it has noticed the end of the earlier
	// connection forgets that connection half, and refuses the name until it is restarted.
	var random [2]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	name := prefix + hex.EncodeToString(random[:])
	listener, err := net.Listen("unix", filepath.Join(dir, name))
	if err != nil {
		return nil, fmt.Errorf("listen for the kubelet: %w", err)
	}
	o := &offer{device: device, health: health, server: grpc.NewServer()}
	api.RegisterDevicePluginServer(o.server, o)
	o.serving.Go(func() { _ = o.server.Serve(listener) }) // ends with close; the kubelet's calls then fail, which it handles
	if err := register(ctx, filepath.Join(dir, kubeletSocket), name, device.Resource); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// close ends the server and removes its socket.
func (o *offer) close() {
	o.server.Stop()
	o.serving.Wait()
}

// register tells a kubelet of the socket with this name in its directory.
func register(ctx context.Context, kubelet, name, resource string) error {
	ctx, cancel := context.WithTimeout(ctx, registerLimit)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = api.NewRegistrationClient(conn).Register(ctx, &api.RegisterRequest{
		Version: api.Version, Endpoint: name, ResourceName: resource, Options: &api.DevicePluginOptions{},
	})
	return err
}

// GetDevicePluginOptions implements the kubelet's interface: there are none.
func (o *offer) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch implements the kubelet's interface. The list is sent again when the device's health changes.
func (o *offer) ListAndWatch(_ *api.Empty, stream api.DevicePlugin_ListAndWatchServer) error {
	for {
		healthy, changed := o.health.get()
		if err := stream.Send(&api.ListAndWatchResponse{Devices: o.list(healthy)}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// list is the device as often as pods may have it.
func (o *offer) list(healthy bool) []*api.Device {
	health := api.Healthy
	if !healthy {
		health = api.Unhealthy
	}
	name := path.Base(o.device.Resource)
	list := make([]*api.Device, o.device.Count)
	for n := range list {
		list[n] = &api.Device{ID: name + strconv.Itoa(n), Health: health}
	}
	return list
}

// Allocate implements the kubelet's interface: whichever of the devices a container was given, it is the same one.
func (o *offer) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	response := &api.AllocateResponse{}
	for range request.ContainerRequests {
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerAllocateResponse{
			Devices: []*api.DeviceSpec{{HostPath: o.device.Path, ContainerPath: o.device.Path, Permissions: "rw"}},
		})
	}
	return response, nil
}

// health is whether a device works, and tells of changes.
type health struct {
	mu      sync.Mutex
	healthy bool
	changed chan struct{} // closed at the next change
}

func newHealth() *health { return &health{changed: make(chan struct{})} }

func (h *health) set(healthy bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.healthy == healthy {
		return
	}
	h.healthy = healthy
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *health) get() (healthy bool, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.healthy, h.changed
}
