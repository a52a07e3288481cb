package cni

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"k8s.io/apimachinery/pkg/types"

	"patchbay/internal/agent/bridged"
	"patchbay/internal/agent/link"
	"patchbay/internal/agent/netns"
	"patchbay/internal/agent/podnet"
)

// del disconnects a sandbox. It works without a record, a namespace or a pod: the runtime may call it for an ADD that failed,
// for one that an agent that was killed left half done, and any number of times.
func (p *Plugin) del(ctx context.Context, c call) error {
	s := c.sandbox
	unlock, err := p.pods.lock(ctx, s.pod.Namespace+"/"+s.pod.Name)
	if err != nil {
		return failed("disconnect", s, "wait for the request before", err)
	}
	defer unlock()
	pod, ok := p.Records.Sandbox(s.containerID)
	if !ok {
		pod = podnet.Pod{UID: s.pod.UID, Namespace: s.pod.Namespace, Name: s.pod.Name, ContainerID: s.containerID,
			Interfaces: []podnet.Interface{{Name: s.ifName, HostName: hostName(s.containerID, s.ifName)}}}
	}
	if err := p.disconnect(ctx, pod); err != nil {
		return failed("disconnect", s, "", err)
	}
	return nil
}

// disconnect removes ports, devices and record of one sandbox, whatever of them there is.
func (p *Plugin) disconnect(ctx context.Context, pod podnet.Pod) error {
	if err := p.removeDevices(ctx, pod); err != nil {
		return err
	}
	if err := p.unplugTaps(ctx, pod); err != nil {
		return err
	}
	if err := p.Records.Delete(pod.UID, pod.ContainerID); err != nil {
		return err
	}
	p.forgetConnections(pod)
	return nil
}

// removeDevices undoes in reverse order: what others attached, then our own.
func (p *Plugin) removeDevices(ctx context.Context, pod podnet.Pod) error {
	var failed error
	for _, i := range pod.Interfaces {
		if i.Delegated() {
			failed = errors.Join(failed, bridged.Restore(pod.Netns, i.Name))
		}
	}
	if p.Delegates != nil && pod.ContainerID != "" {
		failed = errors.Join(failed, p.Delegates.Del(ctx, pod.ContainerID))
	}
	names := slices.Collect(maps.Keys(p.Ports.Owned(ownerOf(pod.ContainerID))))
	for _, i := range pod.Interfaces {
		if isVeth(i) {
			names = append(names, i.HostName)
		}
	}
	slices.Sort(names)
	return errors.Join(failed, p.removeNamed(ctx, slices.Compact(names)))
}

// unplugTaps unplugs what the guest of the pod has left: its taps are gone with it, but not their ports.
func (p *Plugin) unplugTaps(ctx context.Context, pod podnet.Pod) error {
	if pod.UID == "" {
		return nil
	}
	if current, ok := p.Records.Get(pod.UID); ok && current.ContainerID != pod.ContainerID {
		return nil // the pod has a new sandbox
	}
	return p.Ports.Unplug(ctx, slices.Collect(maps.Keys(p.Ports.Owned(podnet.TapOwner(pod.UID))))...)
}

// removeNamed unplugs first: a plugged device without a netdev makes ovs-vswitchd complain at every change.
func (p *Plugin) removeNamed(ctx context.Context, names []string) error {
	if err := p.Ports.Unplug(ctx, names...); err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, link.Remove(name))
	}
	return errors.Join(errs...)
}

// forgetConnections drops what the node's connection tracking knows of the pod's addresses, unless another pod of the node
// has them by now.
func (p *Plugin) forgetConnections(pod podnet.Pod) {
	others := p.Records.List()
	for _, i := range pod.Interfaces {
		for _, ip := range i.IPs {
			taken := slices.ContainsFunc(others, func(o podnet.Pod) bool { return o.UID != pod.UID && hasIP(o, ip.Addr().String()) })
			if taken {
				continue
			}
			if err := link.ForgetConnections(ip.Addr()); err != nil {
				p.Log.Warn("connections of a removed pod stay tracked until they time out", "ip", ip.Addr(), "error", err)
			}
		}
	}
}

func hasIP(pod podnet.Pod, ip string) bool {
	for _, i := range pod.Interfaces {
		for _, have := range i.IPs {
			if have.Addr().String() == ip {
				return true
			}
		}
	}
	return false
}

// gc removes every attachment that the runtime does not list as valid.
func (p *Plugin) gc(ctx context.Context, valid []cnitypes.GCAttachment) error {
	keep := map[string]bool{}
	for _, a := range valid {
		keep[a.ContainerID] = true
	}
	return p.collect(ctx, func(pod podnet.Pod) bool { return keep[pod.ContainerID] }, keep)
}

// Recover removes what earlier agents left over: devices and ports of calls that did not finish, and pods whose namespace is
// gone or that exists no more in the API. It must run before requests are served.
func (p *Plugin) Recover(ctx context.Context, exists func(types.UID) bool) error {
	return p.collect(ctx, func(pod podnet.Pod) bool { return exists(pod.UID) && netns.Exists(pod.Netns) }, nil)
}

// collect removes records that are not wanted, and ports and devices that belong to neither a record that stays, a sandbox in
// keep, nor a request in progress.
func (p *Plugin) collect(ctx context.Context, wanted func(podnet.Pod) bool, keep map[string]bool) error {
	unlock, err := p.pods.lockIdle(ctx)
	if err != nil {
		return fmt.Errorf("collect what is left over: %w", err)
	}
	defer unlock()
	devices, pods := map[string]bool{}, map[string]bool{}
	var errs []error
	for _, pod := range p.Records.List() {
		if !wanted(pod) {
			p.Log.Info("pod is gone; disconnecting it", "pod", pod.Namespace+"/"+pod.Name, "sandbox", pod.ContainerID)
			errs = append(errs, p.disconnect(ctx, pod))
			continue
		}
		pods[string(pod.UID)], pods[pod.ContainerID] = true, true
		for _, i := range pod.Interfaces {
			devices[i.HostName] = true
			if isVeth(i) {
				link.Silence(ctx, p.guardOf(i), i.HostName)
			}
		}
	}
	errs = append(errs, p.removeStray(ctx, devices, keep), p.unplugStrayTaps(ctx, pods), p.detachStray(ctx, pods, keep))
	return errors.Join(errs...)
}

// unplugStrayTaps unplugs what guests of pods that are no more have left.
func (p *Plugin) unplugStrayTaps(ctx context.Context, pods map[string]bool) error {
	var stray []string
	for name, owner := range p.Ports.Owned(podnet.TapOwners) {
		uid, _, _ := strings.Cut(strings.TrimPrefix(owner, podnet.TapOwners), "/")
		if !pods[uid] {
			stray = append(stray, name)
		}
	}
	return p.Ports.Unplug(ctx, stray...)
}

// detachStray undoes what other plugins have attached to sandboxes that are no more.
func (p *Plugin) detachStray(ctx context.Context, pods, keep map[string]bool) error {
	if p.Delegates == nil {
		return nil
	}
	containers, err := p.Delegates.Containers()
	errs := []error{err}
	for _, container := range containers {
		if !pods[container] && !keep[container] {
			errs = append(errs, p.Delegates.Del(ctx, container))
		}
	}
	return errors.Join(errs...)
}

func (p *Plugin) removeStray(ctx context.Context, devices, keep map[string]bool) error {
	stray, err := link.Names(link.VethPrefix)
	if err != nil {
		return err
	}
	for name, owner := range p.Ports.Owned(ownerPrefix) {
		container, _, _ := strings.Cut(strings.TrimPrefix(owner, ownerPrefix), "/")
		if keep[container] {
			devices[name] = true
		}
		stray = append(stray, name)
	}
	slices.Sort(stray)
	stray = slices.DeleteFunc(slices.Compact(stray), func(name string) bool { return devices[name] })
	if len(stray) == 0 {
		return nil
	}
	p.Log.Info("removing devices that belong to no pod", "devices", stray)
	return p.removeNamed(ctx, stray)
}

// samePrevResult says whether the runtime's memory of ADD names the addresses that the pod was given.
func samePrevResult(conf cnitypes.PluginConf, pod podnet.Pod) error {
	if conf.PrevResult == nil {
		return errors.New("the runtime passed none")
	}
	result, err := current.GetResult(conf.PrevResult)
	if err != nil {
		return err
	}
	for _, ip := range result.IPs {
		if !hasIP(pod, ip.Address.IP.String()) {
			return fmt.Errorf("address %s is not the pod's", ip.Address.IP)
		}
	}
	return nil
}
