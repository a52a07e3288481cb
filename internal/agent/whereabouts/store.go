package whereabouts

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	wbv1alpha1 "patchbay/api/whereabouts/v1alpha1"
)

// Store keeps pools and reservations. Reader must read the API server itself: a cache says too late what is taken.
type Store struct {
	Reader    client.Reader
	Writer    client.Writer
	Namespace string
}

// errChanged says that another node was quicker.
var errChanged = errors.New("changed by another node meanwhile")

// Pauses before the next try when another node was quicker: random, so that nodes do not stay in step.
const (
	minPause = 5 * time.Millisecond
	maxPause = 100 * time.Millisecond
)

// untilAgreed repeats an attempt until no other node interferes.
func untilAgreed(ctx context.Context, attempt func() error) error {
	for {
		err := attempt()
		if !errors.Is(err, errChanged) {
			return err
		}
		pause := time.NewTimer(minPause + rand.N(maxPause-minPause))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return fmt.Errorf("take an address: %w; the pool is %w", context.Cause(ctx), err)
		}
	}
}

// take gives the holder an address of a range. The reservation is made first: a node that dies in between leaves one that the same
// holder finds again, and that the controller takes away when there is no such holder.
func (st Store) take(ctx context.Context, s settings, r span, h holder) (netip.Addr, error) {
	refused := map[netip.Addr]bool{}
	var chosen, reserved netip.Addr
	err := untilAgreed(ctx, func() error {
		pool, err := st.pool(ctx, s, r)
		if err != nil {
			return err
		}
		if chosen, err = r.choose(pool.Spec.Allocations, h, refused); err != nil {
			return err
		}
		if s.across && chosen != reserved {
			if reserved.IsValid() {
				if err := st.release(ctx, s, reserved, h.owner.String(), h.iface); err != nil {
					return err
				}
				reserved = netip.Addr{}
			}
			ours, err := st.reserve(ctx, s, chosen, h)
			if err != nil {
				return err
			}
			if !ours {
				refused[chosen] = true
				return errChanged
			}
			reserved = chosen
		}
		key := keyOf(r.subnet, chosen)
		if pool.Spec.Allocations[key] == h.allocation() {
			return nil
		}
		if pool.Spec.Allocations == nil {
			pool.Spec.Allocations = map[string]wbv1alpha1.IPAllocation{}
		}
		pool.Spec.Allocations[key] = h.allocation()
		return st.update(ctx, pool)
	})
	if err != nil && reserved.IsValid() {
		err = errors.Join(err, st.release(context.WithoutCancel(ctx), s, reserved, h.owner.String(), h.iface))
	}
	return chosen, err
}

// giveBack removes what a sandbox's interface has of a range, unless a virtual machine keeps it.
func (st Store) giveBack(ctx context.Context, s settings, r span, h holder) error {
	return untilAgreed(ctx, func() error {
		pool := &wbv1alpha1.IPPool{}
		err := st.Reader.Get(ctx, st.key(poolName(s.network, r.subnet)), pool)
		if err != nil {
			return client.IgnoreNotFound(err)
		}
		for key, a := range pool.Spec.Allocations {
			owner, _ := wbv1alpha1.ParseOwner(a.PodRef)
			if a.ContainerID != h.container || a.IfName != h.iface || owner.Kind == wbv1alpha1.OwnerMachine {
				continue
			}
			if address, ok := addressAt(r.subnet, key); ok && s.across {
				if err := st.release(ctx, s, address, a.PodRef, a.IfName); err != nil {
					return err
				}
			}
			delete(pool.Spec.Allocations, key)
			return st.update(ctx, pool)
		}
		return nil
	})
}

// check says whether a sandbox's interface still has its address.
func (st Store) check(ctx context.Context, s settings, r span, h holder) error {
	pool := &wbv1alpha1.IPPool{}
	if err := st.Reader.Get(ctx, st.key(poolName(s.network, r.subnet)), pool); err != nil {
		return fmt.Errorf("read the pool of range %s: %w", r.subnet, err)
	}
	for _, a := range pool.Spec.Allocations {
		if a.ContainerID == h.container && a.IfName == h.iface {
			return nil
		}
	}
	return fmt.Errorf("interface %s has no address of range %s any more", h.iface, r.subnet)
}

func (st Store) key(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: st.Namespace, Name: name}
}

// pool reads the pool of a range, and makes it when there is none.
func (st Store) pool(ctx context.Context, s settings, r span) (*wbv1alpha1.IPPool, error) {
	key := st.key(poolName(s.network, r.subnet))
	pool := &wbv1alpha1.IPPool{}
	err := st.Reader.Get(ctx, key, pool)
	if apierrors.IsNotFound(err) {
		pool = &wbv1alpha1.IPPool{
			ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
			Spec:       wbv1alpha1.IPPoolSpec{Range: r.subnet.String(), Allocations: map[string]wbv1alpha1.IPAllocation{}},
		}
		if err = st.Writer.Create(ctx, pool); apierrors.IsAlreadyExists(err) {
			return nil, errChanged
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read or make the pool of range %s: %w", r.subnet, err)
	}
	return pool, nil
}

// update writes a pool as it was read and changed; the API server refuses if somebody has written it since.
func (st Store) update(ctx context.Context, pool *wbv1alpha1.IPPool) error {
	err := st.Writer.Update(ctx, pool)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return errChanged
	}
	if err != nil {
		return fmt.Errorf("write the pool of range %s: %w", pool.Spec.Range, err)
	}
	return nil
}

// reserve takes an address over all pools. ours is false when another owner has it.
func (st Store) reserve(ctx context.Context, s settings, a netip.Addr, h holder) (ours bool, err error) {
	key := st.key(reservationName(s.network, a))
	err = st.Writer.Create(ctx, &wbv1alpha1.OverlappingRangeIPReservation{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
		Spec:       wbv1alpha1.OverlappingRangeIPReservationSpec{ContainerID: h.container, PodRef: h.owner.String(), IfName: h.iface},
	})
	if err == nil {
		return true, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return false, fmt.Errorf("reserve address %s: %w", a, err)
	}
	there := &wbv1alpha1.OverlappingRangeIPReservation{}
	if err := st.Reader.Get(ctx, key, there); err != nil {
		if apierrors.IsNotFound(err) {
			return false, errChanged
		}
		return false, fmt.Errorf("read the reservation of address %s: %w", a, err)
	}
	return there.Spec.PodRef == h.owner.String() && there.Spec.IfName == h.iface, nil
}

// release gives an address back that this owner has reserved.
func (st Store) release(ctx context.Context, s settings, a netip.Addr, podRef, iface string) error {
	there := &wbv1alpha1.OverlappingRangeIPReservation{}
	if err := st.Reader.Get(ctx, st.key(reservationName(s.network, a)), there); err != nil {
		return client.IgnoreNotFound(err)
	}
	if there.Spec.PodRef != podRef || there.Spec.IfName != iface {
		return nil
	}
	err := st.Writer.Delete(ctx, there, client.Preconditions{UID: &there.UID})
	if apierrors.IsConflict(err) {
		return nil // another one by now
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("release address %s: %w", a, err)
	}
	return nil
}
