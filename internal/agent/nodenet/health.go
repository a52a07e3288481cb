package nodenet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// health answers load balancers that ask whether this node has endpoints of a service whose externalTrafficPolicy is Local,
// on the service's healthCheckNodePort.
type health struct {
	log *slog.Logger

	mu      sync.Mutex
	servers map[uint16]*healthServer
	serving sync.WaitGroup
}

type healthServer struct {
	http *http.Server

	mu        sync.Mutex
	service   types.NamespacedName
	endpoints int
}

// healthAnswer is what the field's load balancers know from kube-proxy.
type healthAnswer struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

// apply opens and closes ports until exactly those of the services are served. A port that cannot be opened is reported and
// tried again at the next apply.
func (h *health) apply(ctx context.Context, services []service) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.servers == nil {
		h.servers = map[uint16]*healthServer{}
	}
	wanted := map[uint16]service{}
	for _, s := range services {
		if s.healthPort != 0 {
			wanted[s.healthPort] = s
		}
	}
	for port, server := range h.servers {
		if _, ok := wanted[port]; !ok {
			server.http.Close()
			delete(h.servers, port)
		}
	}
	var errs []error
	for port, s := range wanted {
		if h.servers[port] == nil {
			if err := h.open(ctx, port); err != nil {
				errs = append(errs, fmt.Errorf("serve healthCheckNodePort %d of service %s: %w", port, s.key, err))
				continue
			}
		}
		h.servers[port].set(s.key, s.localEndpoints())
	}
	return errors.Join(errs...)
}

func (h *health) open(ctx context.Context, port uint16) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", ":"+strconv.Itoa(int(port)))
	if err != nil {
		return err
	}
	server := &healthServer{}
	server.http = &http.Server{Handler: server, ReadHeaderTimeout: 5 * time.Second}
	h.servers[port] = server
	h.serving.Go(func() {
		if err := server.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			h.log.Warn("healthCheckNodePort is served no more", "port", port, "error", err)
		}
	})
	return nil
}

// close ends all servers.
func (h *health) close() {
	_ = h.apply(context.Background(), nil)
	h.serving.Wait()
}

func (s *healthServer) set(service types.NamespacedName, endpoints int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.service, s.endpoints = service, endpoints
}

func (s *healthServer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	answer := healthAnswer{LocalEndpoints: s.endpoints, ServiceProxyHealthy: true}
	answer.Service.Namespace, answer.Service.Name = s.service.Namespace, s.service.Name
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if answer.LocalEndpoints == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// localEndpoints counts the endpoints on this node that get outside traffic. One of both families counts once.
func (s service) localEndpoints() int {
	count := 0
	for _, f := range families {
		addresses := map[netip.Addr]bool{}
		for _, port := range s.ports {
			for _, e := range port.choose(func(e endpoint) bool { return e.here && e.address.Addr().Is4() == f.is4 }) {
				addresses[e.Addr()] = true
			}
		}
		count = max(count, len(addresses))
	}
	return count
}
