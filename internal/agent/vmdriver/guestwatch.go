package vmdriver

import (
	"context"
	"sync"
	"time"

	"patchbay/internal/agent/credentials"
	"patchbay/internal/agent/vmstate"
	"patchbay/internal/qemu/qga"
)

// How often a guest agent is asked: at once, then at intervals that double. News of the guest's NICs start them again.
const (
	firstPoll = 2 * time.Second
	lastPoll  = 120 * time.Second
	// settle is how long after news of a NIC the agent is asked: a guest that gets an address changes several things.
	settle = 500 * time.Millisecond
)

// guestWatch asks the guest agent while it is there.
type guestWatch struct {
	d       *domain
	cancel  context.CancelFunc // nil while no agent is there
	running sync.WaitGroup
}

func newGuestWatch(d *domain) *guestWatch { return &guestWatch{d: d} }

func (g *guestWatch) start() {
	if g.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(g.d.ctx)
	g.cancel = cancel
	g.d.update(func(s *vmstate.Domain) { s.Guest = &vmstate.Guest{} })
	g.running.Go(func() { g.poll(ctx) })
	if credentials.NeedAgent(g.d.credentials) {
		g.running.Go(func() { g.letIn(ctx) })
	}
}

// letIn keeps the guest's users as the access credentials say.
func (g *guestWatch) letIn(ctx context.Context) {
	keeper := credentials.Keeper{
		Credentials: g.d.credentials, Dir: g.d.secrets, Guest: g.d.agent,
		Report: func(err error) {
			access := &vmstate.Access{}
			if err != nil {
				access.Failure = err.Error()
			}
			g.d.update(func(s *vmstate.Domain) { s.Access = access })
		},
	}
	keeper.Run(ctx)
}

func (g *guestWatch) stop() {
	if g.cancel == nil {
		return
	}
	g.cancel()
	g.cancel = nil
	g.running.Wait()
	g.d.update(func(s *vmstate.Domain) { s.Guest, s.Access = nil, nil })
}

func (g *guestWatch) poll(ctx context.Context) {
	wait := firstPoll
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.d.poke:
			wait = firstPoll
			timer.Reset(settle)
		case <-timer.C:
			g.ask(ctx)
			timer.Reset(wait)
			wait = min(2*wait, lastPoll)
		}
	}
}

// ask takes what the agent says. What it does not say stays as it was.
func (g *guestWatch) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, actLimit)
	defer cancel()
	guest := *g.d.describe().Guest
	if info, err := g.d.agent.Info(ctx); err == nil {
		guest.Missing = info.Missing(vmstate.RequiredCommands...)
	}
	if interfaces, err := g.d.agent.Interfaces(ctx); err == nil {
		guest.Interfaces = interfaces
	}
	if os, err := g.d.agent.OS(ctx); err == nil {
		guest.OS = os
	} else if qga.NotSupported(err) {
		guest.OS = qga.OS{}
	}
	if ctx.Err() != nil {
		return
	}
	g.d.update(func(s *vmstate.Domain) { s.Guest = &guest })
}
