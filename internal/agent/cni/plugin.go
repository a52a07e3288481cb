// Package cni connects pods when the container runtime asks: it serves the CNI commands that patchbay-cni passes on, makes
// each pod's devices, plugs them into OVN and keeps a record. Which addresses a pod gets is decided by the network
// controller; this package waits for them and must not choose any.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"patchbay/internal/agent/cni/shim"
	"patchbay/internal/agent/link"
	"patchbay/internal/agent/ovs"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/podnetworks"
)

// Pods is what the plugin asks of the Kubernetes API.
type Pods interface {
	// Networks waits until the network controller gave the pod its addresses, and returns them with the pod's UID.
	Networks(ctx context.Context, pod PodRef) (PodRef, map[string]podnetworks.Network, error)
	// While returns a context that ends when the pod is deleted.
	While(ctx context.Context, pod PodRef) (context.Context, context.CancelFunc)
	// Annotate sets an annotation of the pod.
	Annotate(ctx context.Context, pod PodRef, key, value string) error
}

// Ports is what the plugin asks of the node's Open vSwitch; *ovs.Client is one.
type Ports interface {
	Plug(ctx context.Context, p ovs.Port) error
	Unplug(ctx context.Context, names ...string) error
	AwaitInstalled(ctx context.Context, name string) error
	Installed(name, logical string) bool
	Owned(prefix string) map[string]string
}

// Config is what a plugin needs.
type Config struct {
	Pods    Pods
	Ports   Ports
	Guard   link.Guard
	Records *podnet.Store
	MTU     int // of pods whose annotation names none
	Log     *slog.Logger
}

// Plugin carries out CNI commands. Commands for one pod are carried out one after the other, those for different pods in parallel.
type Plugin struct {
	Config
	pods locks
}

// New returns a plugin.
func New(c Config) *Plugin { return &Plugin{Config: c} }

// addDeadline bounds ADD well below the runtime's and kubelet's own limits (2 and 4 minutes), so that the clear error wins.
const addDeadline = 90 * time.Second

var errTooSlow = fmt.Errorf("gave up after %s; kubelet retries", addDeadline)

// Do carries out one request.
func (p *Plugin) Do(ctx context.Context, r shim.Request) (json.RawMessage, error) {
	c, err := parseRequest(r)
	if err != nil {
		return nil, err
	}
	switch c.command {
	case "ADD":
		return p.add(ctx, c)
	case "DEL":
		return nil, p.del(ctx, c)
	case "CHECK":
		return nil, p.check(ctx, c)
	case "GC":
		return nil, p.gc(ctx, c.conf.ValidAttachments)
	}
	return nil, nil // STATUS: that there is an answer is the answer
}

func (p *Plugin) add(ctx context.Context, c call) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, addDeadline, errTooSlow)
	defer cancel()
	s := c.sandbox
	unlock, err := p.pods.lock(ctx, s.pod.Namespace+"/"+s.pod.Name)
	if err != nil {
		return nil, failed("connect", s, "wait for the request before", err)
	}
	defer unlock()
	pod, networks, err := p.Pods.Networks(ctx, s.pod)
	if err != nil {
		return nil, failed("connect", s, "wait for its addresses", err)
	}
	s.pod = pod
	w, err := plan(s, networks, p.MTU)
	if err != nil {
		return nil, failed("connect", s, "read its addresses", err)
	}
	if !p.standing(w) {
		if err := p.wire(ctx, w); err != nil {
			return nil, failed("connect", s, "", err)
		}
	}
	return render(w.record, c.conf.CNIVersion)
}

// standing says whether this very sandbox is connected already: the answer to an earlier ADD was lost.
func (p *Plugin) standing(w wiring) bool {
	old, ok := p.Records.Get(w.record.UID)
	return ok && old.ContainerID == w.record.ContainerID && p.verify(w.record) == nil
}

// wire makes it so. When a step fails, all of them are undone.
func (p *Plugin) wire(ctx context.Context, w wiring) error {
	alive, cancel := p.Pods.While(ctx, PodRef{w.record.Namespace, w.record.Name, w.record.UID})
	defer cancel()
	before, replaces := p.Records.Get(w.record.UID)
	err := p.connect(alive, w)
	if replaces && before.ContainerID != w.record.ContainerID {
		// Its ports were unplugged in the moment the new ones were plugged.
		err = errors.Join(err, p.removeDevices(context.WithoutCancel(ctx), before))
	}
	if err != nil {
		return errors.Join(err, p.disconnect(context.WithoutCancel(ctx), w.record))
	}
	p.Log.Info("pod connected", "pod", w.record.Namespace+"/"+w.record.Name, "ips", joinIPs(w.record.Interfaces[0].IPs),
		"device", w.record.Interfaces[0].HostName)
	return nil
}

func (p *Plugin) connect(ctx context.Context, w wiring) error {
	for _, i := range w.record.Interfaces {
		if err := link.Connect(ctx, p.Guard, vethOf(w.record, i)); err != nil {
			return fmt.Errorf("make %s: %w", i.Name, err)
		}
		if err := p.Ports.Plug(ctx, portOf(w.record, i)); err != nil {
			return fmt.Errorf("plug %s: %w", i.Name, err)
		}
	}
	status, err := renderStatus(w)
	if err != nil {
		return err
	}
	// OVN's work takes longest; the record and the annotation are written meanwhile.
	steps, ctx := errgroup.WithContext(ctx)
	for _, i := range w.record.Interfaces {
		steps.Go(func() error { return p.Ports.AwaitInstalled(ctx, i.HostName) })
	}
	steps.Go(func() error { return p.Records.Put(w.record) })
	steps.Go(func() error {
		return p.Pods.Annotate(ctx, PodRef{w.record.Namespace, w.record.Name, w.record.UID}, NetworkStatusAnnotation, status)
	})
	return steps.Wait()
}

func (p *Plugin) check(ctx context.Context, c call) error {
	s := c.sandbox
	unlock, err := p.pods.lock(ctx, s.pod.Namespace+"/"+s.pod.Name)
	if err != nil {
		return failed("check", s, "wait for the request before", err)
	}
	defer unlock()
	pod, ok := p.Records.Sandbox(s.containerID)
	if !ok {
		return &shim.Error{Code: shim.CodeUnknownContainer, Msg: fmt.Sprintf("pod %s is not connected (sandbox %s)", s.pod, s.containerID)}
	}
	if err := samePrevResult(c.conf, pod); err != nil {
		return failed("check", s, "compare with prevResult", err)
	}
	if err := p.verify(pod); err != nil {
		return failed("check", s, "", err)
	}
	return nil
}

// verify says what of a recorded pod is no longer in place.
func (p *Plugin) verify(pod podnet.Pod) error {
	for _, i := range pod.Interfaces {
		if err := link.Verify(vethOf(pod, i)); err != nil {
			return err
		}
		if !p.Ports.Installed(i.HostName, i.Port) {
			return fmt.Errorf("device %s is not an installed port of %s for logical port %s", i.HostName, ovs.IntegrationBridge, i.Port)
		}
	}
	return nil
}

// failed names the pod, what was done for it and the step.
func failed(verb string, s sandbox, step string, err error) error {
	msg := fmt.Sprintf("%s pod %s", verb, s.pod)
	if step != "" {
		msg += ": " + step
	}
	code := uint(shim.CodeWiring)
	var coded *shim.Error
	switch {
	case errors.As(err, &coded):
		code = coded.Code
	case errors.Is(err, errTooSlow), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		code = shim.CodeTryAgainLater
	}
	return &shim.Error{Code: code, Msg: msg, Details: err.Error()}
}
