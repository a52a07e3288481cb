// Package vmctl is what a person at a terminal does with virtual machines: list, start, stop, reach, plug, migrate. It uses the
// published API only, with the rights of the person, and prints nothing: package main does. It must not know that a cluster may be a
// local one.
package vmctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Client acts in one cluster.
type Client struct {
	config *rest.Config
	api    client.Client
	verbs  rest.Interface // of subresources.kubevirt.io
}

const verbsPath = "/apis/subresources.kubevirt.io/v1"

// New makes a client.
func New(config *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), virtv1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	plain := rest.CopyConfig(config)
	plain.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	verbs, err := rest.UnversionedRESTClientFor(plain)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return &Client{config: config, api: api, verbs: verbs}, nil
}

// put carries out a verb on a VM or, with instances, on its instance.
func (c *Client) put(ctx context.Context, kind string, m Name, verb string, options any) error {
	body, err := json.Marshal(options)
	if err != nil {
		return err
	}
	return c.verbs.Put().AbsPath(verbsPath, "namespaces", m.Namespace, kind, m.Name, verb).Body(body).Do(ctx).Error()
}

// get reads what a verb tells.
func (c *Client) get(ctx context.Context, kind string, m Name, verb string, answer any) error {
	text, err := c.verbs.Get().AbsPath(verbsPath, "namespaces", m.Namespace, kind, m.Name, verb).Do(ctx).Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(text, answer)
}

const (
	machines  = "virtualmachines"
	instances = "virtualmachineinstances"
)

// Start starts a VM; paused holds it before its first instruction.
func (c *Client) Start(ctx context.Context, m Name, paused bool) error {
	return c.put(ctx, machines, m, "start", virtv1.StartOptions{Paused: paused})
}

// Stop shuts a VM down. A grace period in seconds, if it is not nil, is how long the guest may take.
func (c *Client) Stop(ctx context.Context, m Name, grace *int64) error {
	return c.put(ctx, machines, m, "stop", virtv1.StopOptions{GracePeriod: grace})
}

// Restart shuts a VM down and starts it again; force does not wait for the guest.
func (c *Client) Restart(ctx context.Context, m Name, force bool) error {
	o := virtv1.RestartOptions{}
	if force {
		o.GracePeriodSeconds = new(int64)
	}
	return c.put(ctx, machines, m, "restart", o)
}

// Pause stops a guest's processors; Unpause lets them run.
func (c *Client) Pause(ctx context.Context, m Name) error {
	return c.put(ctx, instances, m, "pause", virtv1.PauseOptions{})
}

// Unpause lets a paused guest run.
func (c *Client) Unpause(ctx context.Context, m Name) error {
	return c.put(ctx, instances, m, "unpause", virtv1.UnpauseOptions{})
}

// poll is how often a state is read that somebody waits for.
const poll = 250 * time.Millisecond

// await reads until is reports true.
func await(ctx context.Context, is func(context.Context) (bool, error)) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		if done, err := is(ctx); err != nil || done {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// vm reads a VM.
func (c *Client) vm(ctx context.Context, m Name) (*virtv1.VirtualMachine, error) {
	vm := &virtv1.VirtualMachine{}
	err := c.api.Get(ctx, m.key(), vm)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("there is no virtual machine %s in namespace %s; `patchbay vm list -A` shows all", m.Name, m.Namespace)
	}
	return vm, err
}

// vmi reads a VM's instance.
func (c *Client) vmi(ctx context.Context, m Name) (*virtv1.VirtualMachineInstance, error) {
	vmi := &virtv1.VirtualMachineInstance{}
	err := c.api.Get(ctx, m.key(), vmi)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("virtual machine %s in namespace %s does not run; start it with `patchbay vm start`", m.Name, m.Namespace)
	}
	return vmi, err
}

// isConflict says that somebody else wrote in between.
func isConflict(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && status.Status().Code == http.StatusConflict
}
