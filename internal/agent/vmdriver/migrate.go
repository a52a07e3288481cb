package vmdriver

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	apiclient "sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/agent/vmstate"
)

// observeMigration adds this node's part of a migration.
func (m *machine) observeMigration(ctx context.Context, o *vmstate.Observed) error {
	ms := o.VMI.Status.MigrationState
	if m.sending != nil {
		o.Sending = m.sending.describe()
	}
	if m.receiving != nil {
		o.Receiving = m.receiving.describe()
	}
	if ms == nil {
		return nil
	}
	if ms.SourceNode == m.driver.Node {
		g := m.driver.gift(o.VMI.UID)
		o.GaveAway, o.Held = g.Migration, g.Held != ""
	}
	if ms.Completed || ms.Failed {
		return nil
	}
	var err error
	switch node := m.driver.Node; {
	case ms.TargetNode == node && (o.Receiving == nil || !o.Receiving.Taken):
		o.PeerOver, err = m.podOver(ctx, ms.SourcePod, o.VMI.UID)
	case ms.SourceNode == node && o.GaveAway != "" && o.GaveAway == ms.MigrationUID:
		o.PeerOver, err = m.podOver(ctx, ms.TargetPod, o.VMI.UID)
	}
	return err
}

// podOver says that the pod of another node has ended, and QEMU with it: the kubelet there says so, or has let the pod go.
func (m *machine) podOver(ctx context.Context, name string, vmi types.UID) (bool, error) {
	pod := &corev1.Pod{}
	err := m.driver.Live.Get(ctx, apiclient.ObjectKey{Namespace: m.key.Namespace, Name: name}, pod)
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the other side's pod %s: %w", name, err)
	}
	over := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	return over || pod.Labels[virtv1.CreatedByLabel] != string(vmi), nil
}

// leaveOldPod lets go of a QEMU that this node has given away when the guest comes back to it in another pod.
func (m *machine) leaveOldPod(ctx context.Context, pod *corev1.Pod) {
	if pod == nil || m.podUID == "" || m.podUID == pod.UID {
		return
	}
	if _, d := m.current(); d != nil && m.dir != nil {
		limited, cancel := context.WithTimeout(ctx, actLimit)
		defer cancel()
		if _, err := m.dir.Stop(limited); err != nil {
			m.log.Warn("cannot end the guest's earlier QEMU", "error", err)
		}
	}
	m.release()
	m.ended, m.failure, m.failed = nil, nil, 0
}

// collectReceived takes over the QEMU that waits for a guest.
func (m *machine) collectReceived() {
	if m.receiving == nil {
		return
	}
	if d := m.receiving.collect(); d != nil {
		m.setDomain(d)
		d.run(m.nudge)
	}
}

func (m *machine) forgetSend() {
	if m.sending != nil {
		m.sending.close()
		m.sending = nil
	}
}

func (m *machine) forgetReceive() {
	if m.receiving != nil {
		m.receiving.close()
		m.receiving = nil
	}
}

// actMigration carries out what a migration asks for.
func (m *machine) actMigration(ctx context.Context, o vmstate.Observed, action vmstate.Action) error {
	_, d := m.current()
	switch action {
	case vmstate.Send:
		m.forgetSend()
		m.beginSend(o.VMI, d)
	case vmstate.AbortSend:
		m.sending.abort()
	case vmstate.ForgetSend:
		m.forgetSend()
	case vmstate.Continue:
		if o.Held {
			return m.driver.letGo(ctx, o.VMI.UID, d.monitor)
		}
		return d.monitor.Resume(ctx)
	case vmstate.Receive:
		m.forgetReceive()
		m.beginReceive(o.VMI, d)
	case vmstate.ForgetReceive:
		m.forgetReceive()
	case vmstate.TakeOver:
		return m.receiving.run(string(m.receiving.state.Migration), true)
	}
	return nil
}
