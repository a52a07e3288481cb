package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"patchbay/internal/agent/bridged"
	"patchbay/internal/agent/delegate"
	"patchbay/internal/agent/link"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/podnetworks"
)

// Sync brings a connected pod in line with its annotations: networks that it asks for by now are attached, others detached, and the
// record and network-status say so. What the network controller has not given yet is left for the next time. A pod that is not
// connected, or is no more, is left alone. The default and the primary network never change while a pod lives.
func (p *Plugin) Sync(ctx context.Context, ref PodRef) error {
	ctx, cancel := context.WithTimeoutCause(ctx, addDeadline, errTooSlow)
	defer cancel()
	unlock, err := p.pods.lock(ctx, ref.Namespace+"/"+ref.Name)
	if err != nil {
		return fmt.Errorf("change the networks of pod %s: %w", ref, err)
	}
	defer unlock()
	wanted, known, err := p.Pods.Now(ctx, ref)
	if err != nil || !known {
		return err
	}
	have, ok := p.Records.Get(wanted.Pod.UID)
	if !ok {
		return nil
	}
	if err := p.sync(ctx, have, wanted); err != nil {
		return fmt.Errorf("change the networks of pod %s: %w", ref, err)
	}
	return nil
}

func (p *Plugin) sync(ctx context.Context, have podnet.Pod, wanted Wanted) error {
	wanted.Default = nil // it does not change while the pod lives
	missing := wanted.without(have)
	configs, _, err := p.definitions(ctx, &missing)
	if err != nil {
		return err
	}
	s := sandbox{pod: wanted.Pod, containerID: have.ContainerID, netns: have.Netns, ifName: have.Interfaces[0].Name}
	w, err := plan(planFor{s, wanted, configs, p.MTU, p.Inside})
	if err != nil {
		return err
	}
	c := compare(have, w, wanted.Selections)
	if len(c.added)+len(c.removed) == 0 {
		return nil
	}
	var failed []error
	for _, i := range slices.Backward(c.removed) {
		failed = append(failed, p.detach(ctx, have, i))
	}
	now := have
	now.Interfaces = c.kept
	for _, i := range c.added {
		made, err := p.attach(ctx, now, i, w.delegates)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		now.Interfaces = append(slices.Clone(now.Interfaces), made)
		p.Log.Info("network attached", "pod", now.Namespace+"/"+now.Name, "interface", made.Name, "network", made.Attachment, "ips", joinIPs(made.IPs))
	}
	// The record is written even if the pod does not have everything: it says what there is.
	failed = append(failed, p.Records.Put(now), p.announce(ctx, now))
	return errors.Join(failed...)
}

// without leaves out what other plugins have attached already: their definitions may be gone by now.
func (w Wanted) without(have podnet.Pod) Wanted {
	w.Selections = slices.DeleteFunc(slices.Clone(w.Selections), func(s Selection) bool {
		i, ok := have.Interface(s.Interface)
		return ok && i.Delegated() && i.Attachment == s.Network
	})
	return w
}

// change is what differs between a record and what is wanted.
type change struct{ kept, added, removed []podnet.Interface }

// compare goes by name and port. What is asked for but not given at the moment stays.
func compare(have podnet.Pod, w wiring, asked []Selection) change {
	var c change
	for n, old := range have.Interfaces {
		wanted, ok := w.record.Interface(old.Name)
		still := slices.ContainsFunc(asked, func(s Selection) bool {
			return s.Interface == old.Name && (s.Key == old.Attachment || s.Network == old.Attachment)
		})
		switch {
		case n == 0, old.Name == podnetworks.PrimaryInterface, ok && wanted.Attachment == old.Attachment && wanted.Port == old.Port && wanted.Tap == old.Tap, !ok && still:
			c.kept = append(c.kept, old)
		default:
			c.removed = append(c.removed, old)
		}
	}
	for _, i := range w.record.Interfaces {
		if !slices.ContainsFunc(c.kept, func(old podnet.Interface) bool { return old.Name == i.Name }) {
			c.added = append(c.added, i)
		}
	}
	return c
}

// attach connects one more interface. When it fails nothing of it is left.
func (p *Plugin) attach(ctx context.Context, pod podnet.Pod, i podnet.Interface, delegates map[string]delegate.Attachment) (podnet.Interface, error) {
	pod.Interfaces = append(slices.Clone(pod.Interfaces), i)
	made := &pod.Interfaces[len(pod.Interfaces)-1]
	var err error
	if isVeth(i) {
		if err = p.plugIn(ctx, pod, i); err == nil {
			err = p.Ports.AwaitInstalled(ctx, i.HostName)
		}
	} else {
		err = p.delegate(ctx, wiring{record: pod, delegates: delegates}, made)
	}
	if err != nil {
		return i, errors.Join(err, p.detach(context.WithoutCancel(ctx), pod, i))
	}
	return *made, nil
}

// detach disconnects one interface. A guest's tap is not ours: whoever made it takes it away when the guest has let it go.
func (p *Plugin) detach(ctx context.Context, pod podnet.Pod, i podnet.Interface) error {
	switch {
	case isVeth(i):
		if err := p.Ports.Unplug(ctx, i.HostName); err != nil {
			return err
		}
		if err := link.Remove(i.HostName); err != nil {
			return err
		}
	case i.Delegated() && p.Delegates != nil:
		if err := bridged.Restore(pod.Netns, i.Name); err != nil {
			return err
		}
		if err := p.Delegates.Del(ctx, pod.ContainerID, i.Name); err != nil {
			return err
		}
	}
	p.Log.Info("network detached", "pod", pod.Namespace+"/"+pod.Name, "interface", i.Name, "network", i.Attachment)
	return nil
}
