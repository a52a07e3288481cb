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
	"net/netip"
	"slices"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	"golang.org/x/sync/errgroup"

	"patchbay/internal/agent/cni/shim"
	"patchbay/internal/agent/delegate"
	"patchbay/internal/agent/link"
	"patchbay/internal/agent/ovs"
	"patchbay/internal/agent/podnet"
)

// Pods is what the plugin asks of the Kubernetes API.
type Pods interface {
	// Networks waits until the network controller gave the pod its addresses on the default network and on those with the keys.
	Networks(ctx context.Context, pod PodRef, keys ...string) (Wanted, error)
	// Now returns what is known of the pod without waiting; known is false when there is no such pod.
	Now(ctx context.Context, pod PodRef) (w Wanted, known bool, err error)
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

// Definitions reads NetworkAttachmentDefinitions.
type Definitions interface {
	// Definition returns the spec.config of a definition.
	Definition(ctx context.Context, namespace, name string) (string, error)
}

// Delegates runs the CNI plugins of networks that are not ours; *delegate.Runner is one.
type Delegates interface {
	Add(context.Context, delegate.Attachment) (*current.Result, error)
	Check(ctx context.Context, container, iface string) error
	// Del detaches the named interfaces of a sandbox, or all of them if none is named.
	Del(ctx context.Context, container string, interfaces ...string) error
	Containers() ([]string, error)
}

// Config is what a plugin needs.
type Config struct {
	Pods    Pods
	Ports   Ports
	Guard   link.Guard
	Records *podnet.Store
	// Definitions and Delegates serve networks that are not ours; nil: pods cannot ask for any.
	Definitions Definitions
	Delegates   Delegates
	// Warn tells people about a pod.
	Warn func(ctx context.Context, pod PodRef, reason, message string)
	MTU  int // of pods whose annotation names none
	// Inside are the ranges of pods and services, which a pod reaches through the default network even if its default route leads
	// elsewhere.
	Inside []netip.Prefix
	Log    *slog.Logger
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
	w, err := p.plan(ctx, s)
	if err != nil {
		return nil, err
	}
	if old, ok := p.standing(w); ok {
		return render(old, c.conf.CNIVersion)
	}
	if err := p.wire(ctx, &w); err != nil {
		return nil, failed("connect", s, "", err)
	}
	return render(w.record, c.conf.CNIVersion)
}

// plan waits for what the pod is to get.
func (p *Plugin) plan(ctx context.Context, s sandbox) (wiring, error) {
	wanted, err := p.Pods.Networks(ctx, s.pod)
	if err != nil {
		return wiring{}, failed("connect", s, "wait for its addresses", err)
	}
	s.pod = wanted.Pod
	configs, ours, err := p.definitions(ctx, &wanted)
	if err == nil && len(ours) > 0 {
		first := wanted.Default
		wanted, err = p.Pods.Networks(ctx, s.pod, ours...)
		wanted.Default = first
	}
	if err != nil {
		return wiring{}, failed("connect", s, "wait for its networks", err)
	}
	w, err := plan(planFor{s, wanted, configs, p.MTU, p.Inside})
	if err != nil {
		return w, failed("connect", s, "read its addresses", err)
	}
	return w, nil
}

// standing says whether this very sandbox is connected already: the answer to an earlier ADD was lost.
func (p *Plugin) standing(w wiring) (podnet.Pod, bool) {
	old, ok := p.Records.Get(w.record.UID)
	if !ok || old.ContainerID != w.record.ContainerID || len(old.Interfaces) != len(w.record.Interfaces) {
		return old, false
	}
	for n, i := range w.record.Interfaces {
		if have := old.Interfaces[n]; have.Name != i.Name || have.Port != i.Port || !slices.Equal(have.IPs, i.IPs) && !i.Delegated() {
			return old, false
		}
	}
	return old, p.verify(old) == nil
}

// wire makes it so, and completes the record by what other plugins say. When a step fails, all of them are undone.
func (p *Plugin) wire(ctx context.Context, w *wiring) error {
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
	for _, i := range w.record.Interfaces {
		p.Log.Info("pod connected", "pod", w.record.Namespace+"/"+w.record.Name, "interface", i.Name, "network", i.Attachment, "ips", joinIPs(i.IPs),
			"device", i.HostName)
	}
	return nil
}

func (p *Plugin) connect(ctx context.Context, w *wiring) error {
	// OVN's work takes longest; everything else is done meanwhile.
	steps, ctx := errgroup.WithContext(ctx)
	begin := func() error {
		for _, i := range w.record.Interfaces {
			if !isVeth(i) {
				continue
			}
			if err := p.plugIn(ctx, w.record, i); err != nil {
				return err
			}
			steps.Go(func() error { return p.Ports.AwaitInstalled(ctx, i.HostName) })
		}
		for n := range w.record.Interfaces {
			if err := p.delegate(ctx, *w, &w.record.Interfaces[n]); err != nil {
				return err
			}
		}
		steps.Go(func() error { return p.Records.Put(w.record) })
		steps.Go(func() error { return p.announce(ctx, w.record) })
		return nil
	}
	steps.Go(begin)
	return steps.Wait()
}

// plugIn makes a pair of devices and plugs it.
func (p *Plugin) plugIn(ctx context.Context, pod podnet.Pod, i podnet.Interface) error {
	if err := link.Connect(ctx, p.guardOf(i), vethOf(pod, i)); err != nil {
		return fmt.Errorf("make %s: %w", i.Name, err)
	}
	if err := p.Ports.Plug(ctx, portOf(pod, i)); err != nil {
		return fmt.Errorf("plug %s: %w", i.Name, err)
	}
	return nil
}

// guardOf guards an interface. On a network that gives no addresses a pod may be the router.
func (p *Plugin) guardOf(i podnet.Interface) link.Guard {
	if len(i.IPs) == 0 {
		return link.MayRoute(p.Guard)
	}
	return p.Guard
}

// delegate has another plugin make the interface, if it is one of those.
func (p *Plugin) delegate(ctx context.Context, w wiring, i *podnet.Interface) error {
	attachment, ok := w.delegates[i.Name]
	if !ok {
		return nil
	}
	result, err := p.Delegates.Add(ctx, attachment)
	if err != nil {
		return err
	}
	describe(i, result)
	if i.MAC, i.MTU, err = link.Look(w.record.Netns, i.Name); err != nil {
		return fmt.Errorf("network %s: the plugin made no interface %s: %w", i.Attachment, i.Name, err)
	}
	if routes := routesOf(*i); len(routes) > 0 {
		if err := link.AddRoutes(w.record.Netns, i.Name, routes); err != nil {
			return fmt.Errorf("network %s: %w", i.Attachment, err)
		}
	}
	return nil
}

// announce tells people and other programs which interfaces the pod has.
func (p *Plugin) announce(ctx context.Context, pod podnet.Pod) error {
	status, err := renderStatus(pod)
	if err != nil {
		return err
	}
	return p.Pods.Annotate(ctx, PodRef{pod.Namespace, pod.Name, pod.UID}, nadv1.NetworkStatusAnnot, status)
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
	err = p.verify(pod)
	for _, i := range pod.Interfaces {
		if i.Delegated() && p.Delegates != nil {
			err = errors.Join(err, p.Delegates.Check(ctx, pod.ContainerID, i.Name))
		}
	}
	if err != nil {
		return failed("check", s, "", err)
	}
	return nil
}

// verify says what of a recorded pod is no longer in place.
func (p *Plugin) verify(pod podnet.Pod) error {
	for _, i := range pod.Interfaces {
		switch {
		case i.Delegated():
			// Whether the device is there is all that is sure without the plugin: a machine's NIC may be bridged to it.
			if _, _, err := link.Look(pod.Netns, i.Name); err != nil {
				return fmt.Errorf("interface %s of the pod: %w", i.Name, err)
			}
		case isVeth(i):
			if err := link.Verify(vethOf(pod, i)); err != nil {
				return err
			}
			if !p.Ports.Installed(i.HostName, i.Port) {
				return fmt.Errorf("device %s is not an installed port of %s for logical port %s", i.HostName, ovs.IntegrationBridge, i.Port)
			}
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
