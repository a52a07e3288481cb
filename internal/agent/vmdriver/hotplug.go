package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/guestnet"
	"patchbay/internal/agent/neighbours"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/agent/vmstate"
	"patchbay/internal/qemu"
	"patchbay/internal/qemu/qmp"
)

// How long a guest may take to let a network card go before it is asked again, and how long the carrier is away when a card's network
// changes: shorter, and a guest's kernel would not tell anybody.
const (
	releaseLimit = 20 * time.Second
	flapTime     = 1500 * time.Millisecond
)

// plugger is the task of making a guest's network cards those of its instance. It runs beside the machine's loop. Every step of it may
// be the last one of this process: what is left is found by the next one, because QEMU is asked what it has.
type plugger struct {
	driver *Driver
	d      *domain
	vmi    *virtv1.VirtualMachineInstance
	accel  qemu.Accelerator
	pod    podnet.Pod
}

// run does what can be done; a card that does not work keeps no other from working.
func (p plugger) run(ctx context.Context) error {
	todo := vmstate.PlanPlugging(p.vmi, p.d.describe().NICs)
	var errs []error
	for _, name := range todo.Unplug {
		errs = append(errs, p.unplug(ctx, name))
	}
	for _, i := range todo.Rewire {
		errs = append(errs, p.rewire(ctx, i))
	}
	if len(todo.Plug) > 0 {
		dns, err := podDNS(ctx, p.d.dir, p.vmi.Spec.Subdomain)
		errs = append(errs, err)
		for _, i := range todo.Plug {
			if err == nil {
				errs = append(errs, p.plug(ctx, i, dns))
			}
		}
	}
	return errors.Join(errs...)
}

// plug joins a NIC to its network and gives it to the guest.
func (p plugger) plug(ctx context.Context, i virtv1.Interface, dns guestnet.DNS) error {
	if err := p.d.monitor.ForgetNIC(ctx, qemu.NICBackend(i.Name)); err != nil {
		return err
	}
	nic, wired, err := p.driver.OpenNIC(ctx, p.vmi, i, p.pod, dns)
	if err != nil {
		return fmt.Errorf("plug interface %q: %w", i.Name, err)
	}
	c := card{NIC: nic, Wired: wired}
	if p.accel == qemu.KVM {
		cards{c}.openVhost(p.driver.OpenVhost)
	}
	err = p.give(ctx, c)
	wired.closeFiles() // QEMU has its own
	if err != nil {
		wired.discard()
		return fmt.Errorf("plug interface %q: %w", i.Name, errors.Join(err, p.driver.LeaveNIC(ctx, nic)))
	}
	p.d.add(c)
	p.d.log.Info("plugged a network card", "interface", i.Name, "mac", wired.MAC.String())
	return nil
}

func (p plugger) give(ctx context.Context, c card) error {
	ctx, cancel := context.WithTimeout(ctx, actLimit)
	defer cancel()
	ports, err := p.d.monitor.Ports(ctx)
	if err != nil {
		return err
	}
	planned, _ := cards{c}.plan()
	device, err := qemu.PlugNIC(p.vmi, planned[0], ports)
	if err != nil {
		return err
	}
	device.Taps, device.Vhosts = c.Files, c.Vhost
	if err := p.d.monitor.PlugNIC(ctx, device); err != nil {
		return err
	}
	if planned[0].LinkDown {
		return p.d.monitor.SetLink(ctx, device.ID(), false)
	}
	return nil
}

// unplug has the guest let a NIC go and takes it off its network. A guest that does not answer is asked again later; a reset of the
// guest takes the card away too.
func (p plugger) unplug(ctx context.Context, name string) error {
	limited, cancel := context.WithTimeout(ctx, releaseLimit)
	defer cancel()
	if err := p.d.monitor.UnplugNIC(limited, qemu.NICDevice(name), qemu.NICBackend(name)); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("the guest did not let it go within %s; it is asked again, and loses it when it reboots", releaseLimit)
		}
		return fmt.Errorf("unplug interface %q: %w", name, err)
	}
	c, ok := p.d.take(name)
	if !ok {
		return nil
	}
	c.end()
	p.d.log.Info("unplugged a network card", "interface", name)
	if err := p.driver.LeaveNIC(ctx, c.NIC); err != nil {
		p.d.log.Warn("a network card that is unplugged has left something behind; it goes with the pod", "interface", name, "error", err)
	}
	return nil
}

// rewire moves a NIC to another network. The guest keeps the card and sees its carrier go and come, upon which it asks for addresses.
func (p plugger) rewire(ctx context.Context, i virtv1.Interface) error {
	old, ok := p.d.card(i.Name)
	if !ok {
		return nil
	}
	nic := old.NIC
	nic.VMI, nic.Interface, nic.Pod = p.vmi, i, p.pod
	nic.Network = p.vmi.Spec.Networks[slices.IndexFunc(p.vmi.Spec.Networks, func(n virtv1.Network) bool { return n.Name == i.Name })]
	wired, err := p.join(ctx, nic)
	if err != nil {
		return fmt.Errorf("change the network of interface %q: %w", i.Name, err)
	}
	wired.MAC = old.Wired.MAC // the guest's card has it
	p.d.replace(card{NIC: nic, Wired: wired})
	old.end()
	p.d.log.Info("changed the network of a network card", "interface", i.Name, "network", nic.Network.Multus.NetworkName)
	defer p.d.askSoon() // what its agent said is of the old network
	return p.d.flap(ctx, i.Name)
}

// join joins a card that the guest has to the network that it is to be on now, once the pod is attached to that.
func (p plugger) join(ctx context.Context, nic NIC) (*Wired, error) {
	uplink, err := nic.uplink()
	if err != nil {
		return nil, err
	}
	name := nic.attachment()
	if !strings.Contains(name, "/") {
		name = p.vmi.Namespace + "/" + name
	}
	if key := uplink.Attachment; key != name && !strings.HasPrefix(key, name+"/") { // a repeated one has its number behind it
		return nil, NotYet(fmt.Errorf("the pod is still attached to %s", uplink.Attachment))
	}
	wirer, err := p.driver.wirerOf(nic)
	if err != nil {
		return nil, err
	}
	return wirer.Refresh(ctx, nic)
}

// flap takes a NIC's carrier away for a moment, unless it has none anyway.
func (d *domain) flap(ctx context.Context, name string) error {
	for _, nic := range d.describe().NICs {
		if nic.Name == name && nic.LinkDown {
			return nil
		}
	}
	if err := d.monitor.SetLink(ctx, nicDevice(name), false); err != nil {
		return err
	}
	timer := time.NewTimer(flapTime)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), actLimit)
	defer cancel()
	return d.monitor.SetLink(ctx, nicDevice(name), true)
}

// add takes a plugged card into the machine's list, and starts what serves it.
func (d *domain) add(c card) {
	d.serve(&c)
	d.mu.Lock()
	d.cards = append(slices.Clone(d.cards), c)
	d.mu.Unlock()
	d.update(func(s *vmstate.Domain) { s.NICs = append(slices.Clone(s.NICs), cards{c}.describe()...) })
	ctx, cancel := context.WithTimeout(d.ctx, actLimit)
	defer cancel()
	d.listenToFilters(ctx)
	d.askSoon()
}

// replace puts a card in the place of the one of its name.
func (d *domain) replace(c card) {
	d.serve(&c)
	d.mu.Lock()
	d.cards = slices.Clone(d.cards)
	for n := range d.cards {
		if d.cards[n].Interface.Name == c.Interface.Name {
			d.cards[n] = c
		}
	}
	d.mu.Unlock()
	described := cards{c}.describe()[0]
	d.update(func(s *vmstate.Domain) {
		s.NICs = slices.Clone(s.NICs)
		for n := range s.NICs {
			if s.NICs[n].Name == described.Name {
				described.LinkDown = s.NICs[n].LinkDown
				s.NICs[n] = described
			}
		}
	})
}

// take takes a card off the machine's list.
func (d *domain) take(name string) (card, bool) {
	c, ok := d.card(name)
	if !ok {
		return card{}, false
	}
	d.mu.Lock()
	d.cards = slices.DeleteFunc(slices.Clone(d.cards), func(c card) bool { return c.Interface.Name == name })
	d.mu.Unlock()
	d.update(func(s *vmstate.Domain) {
		s.NICs = slices.DeleteFunc(slices.Clone(s.NICs), func(n vmstate.NIC) bool { return n.Name == name })
	})
	d.askSoon()
	return c, true
}

func (d *domain) card(name string) (card, bool) {
	for _, c := range d.list() {
		if c.Interface.Name == name {
			return c, true
		}
	}
	return card{}, false
}

// list is the machine's cards at this moment.
func (d *domain) list() cards {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cards
}

// serve starts what accompanies a card while the guest has it.
func (d *domain) serve(c *card) {
	ctx, cancel := context.WithCancel(d.ctx)
	var running sync.WaitGroup
	begin := func(work func()) {
		running.Add(1)
		d.running.Go(func() {
			defer running.Done()
			work()
		})
	}
	if c.Serve != nil {
		begin(func() { c.Wired.Serve(ctx) })
	}
	if c.Tap.Device != "" {
		begin(func() { d.listen(ctx, c.Interface.Name, c.Tap) })
	}
	c.stop = func() {
		cancel()
		running.Wait()
	}
}

// listen takes note of the addresses that the guest uses on a card.
func (d *domain) listen(ctx context.Context, name string, tap neighbours.Tap) {
	err := neighbours.Listen(ctx, tap, func(address netip.Addr) { d.noteAddress(name, address) })
	if err != nil && ctx.Err() == nil {
		d.log.Warn("the addresses that the guest uses are not observed", "interface", name, "error", err)
	}
}

// mostObserved is how many addresses of a card are remembered: the last ones that were seen.
const mostObserved = 8

func (d *domain) noteAddress(name string, address netip.Addr) {
	for _, nic := range d.describe().NICs {
		if nic.Name == name && slices.Contains(nic.Observed, address) {
			return
		}
	}
	d.update(func(s *vmstate.Domain) {
		s.NICs = slices.Clone(s.NICs)
		for n := range s.NICs {
			if s.NICs[n].Name == name {
				// The newest first: an address that the guest has given up is never taken back.
				seen := append([]netip.Addr{address}, s.NICs[n].Observed...)
				s.NICs[n].Observed = seen[:min(len(seen), mostObserved)]
			}
		}
	})
	d.askSoon() // for what else has changed
}

// end stops what accompanies a card.
func (c card) end() {
	if c.stop != nil {
		c.stop()
	}
	c.discard()
}

// plugged asks QEMU which of an instance's interfaces the guest has.
func plugged(ctx context.Context, monitor qmp.Machine) (map[string]bool, error) {
	devices, err := monitor.Devices(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, id := range devices {
		if name, ok := strings.CutPrefix(id, nicDevice("")); ok {
			names[name] = true
		}
	}
	return names, nil
}
