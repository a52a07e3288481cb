package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	virtv1 "kubevirt.io/api/core/v1"
	apiclient "sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/agent/vmstate"
	"patchbay/internal/launcher/client"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu"
)

// errGone says that the instance does not exist any more, or that another has taken its name.
var errGone = errors.New("the virtual machine instance is gone")

// launcherContainer is the container of the pod that the launcher and QEMU run in.
const launcherContainer = "compute"

// askLimit is how long a launcher may take to answer.
const askLimit = 2 * time.Second

func (m *machine) observe(ctx context.Context) (vmstate.Observed, error) {
	vmi, err := m.readVMI(ctx)
	if err != nil {
		return vmstate.Observed{}, err
	}
	pod, err := m.readPod(ctx, vmi)
	if err != nil {
		return vmstate.Observed{}, err
	}
	m.leaveOldPod(ctx, pod)
	o := vmstate.Observed{
		Now: now(), Node: m.driver.Node, VMI: vmi,
		Pod: m.describePod(pod), Ended: m.ended, Busy: m.task != nil, Failure: m.failure,
		Plugging: m.plug.done != nil, NICFailure: m.plugFailure(vmi),
	}
	if err := m.observeMigration(ctx, &o); err != nil {
		return vmstate.Observed{}, err
	}
	if _, d := m.current(); d != nil {
		o.Domain = d.describe()
	} else if pod != nil && m.openDir(pod) == nil {
		o.Launcher = m.askLauncher(ctx)
		o.Ended = m.ended
	}
	return o, nil
}

// readVMI reads the instance. One that is not in the cache may only have lost the label that the cache selects by, which is no
// reason to end its guest. A cache that has not yet seen our own last write would have us act on the past.
func (m *machine) readVMI(ctx context.Context) (*virtv1.VirtualMachineInstance, error) {
	vmi := &virtv1.VirtualMachineInstance{}
	err := m.driver.Client.Get(ctx, m.key, vmi)
	if apierrors.IsNotFound(err) && m.driver.Arriving != nil {
		err = m.driver.Arriving.Get(ctx, m.key, vmi)
	}
	if m.unlisted = apierrors.IsNotFound(err); m.unlisted {
		err = m.driver.Live.Get(ctx, m.key, vmi)
	}
	if apierrors.IsNotFound(err) {
		return nil, errGone
	}
	if err != nil {
		return nil, err
	}
	if m.uid != "" && vmi.UID != m.uid {
		m.nudge() // for the machine of the new one
		return nil, errGone
	}
	m.uid = vmi.UID
	vmi = m.written.newer(vmi)
	m.mu.Lock()
	m.vmi = vmi
	m.mu.Unlock()
	return vmi, nil
}

// readPod finds the launcher's pod on this node; nil when there is none.
func (m *machine) readPod(ctx context.Context, vmi *virtv1.VirtualMachineInstance) (*corev1.Pod, error) {
	var pods corev1.PodList
	err := m.driver.Client.List(ctx, &pods, apiclient.InNamespace(m.key.Namespace), apiclient.MatchingLabels{virtv1.CreatedByLabel: string(vmi.UID)})
	if err != nil {
		return nil, fmt.Errorf("list the pods of %s: %w", m.key, err)
	}
	var found *corev1.Pod
	for i, pod := range pods.Items {
		if pod.Spec.NodeName != m.driver.Node {
			continue
		}
		if found == nil || found.CreationTimestamp.Before(&pod.CreationTimestamp) {
			found = &pods.Items[i]
		}
	}
	return found, nil
}

func (m *machine) describePod(pod *corev1.Pod) vmstate.Pod {
	if pod == nil {
		return vmstate.Pod{}
	}
	_, connected := m.driver.Pods.Get(pod.UID)
	p := vmstate.Pod{Found: true, Name: pod.Name, Phase: pod.Status.Phase, Connected: connected}
	for _, c := range pod.Status.ContainerStatuses {
		if c.Name == launcherContainer && c.State.Terminated != nil {
			p.ExitCode = int(c.State.Terminated.ExitCode)
		}
	}
	if t := pod.DeletionTimestamp; t != nil {
		p.Deleting = t.Time // which is when the pod shall be gone
		if g := pod.DeletionGracePeriodSeconds; g != nil {
			p.Deleting = t.Add(-time.Duration(*g) * time.Second)
		}
	}
	return p
}

// openDir opens the pod's run directory, which appears with the pod's container.
func (m *machine) openDir(pod *corev1.Pod) error {
	if m.dir != nil && m.podUID == pod.UID {
		return nil
	}
	m.closeDir()
	dir, err := client.Open(m.driver.runDir(pod.UID))
	if err != nil {
		return err
	}
	m.dir, m.podUID, m.accel = dir, pod.UID, qemu.AcceleratorOf(pod)
	return nil
}

// askLauncher asks for the launcher's state and takes note of QEMU's end.
func (m *machine) askLauncher(ctx context.Context) vmstate.Launcher {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	response, err := m.dir.Status(ctx)
	if err != nil {
		return vmstate.Launcher{}
	}
	if response.State == protocol.Exited && m.ended == nil {
		m.ended = &vmstate.Ended{ExitCode: response.ExitCode}
	}
	return vmstate.Launcher{Reachable: true, State: response.State}
}

// collectDomain takes note of a monitor that was lost. If nobody said why, the launcher is asked next: it may have been only the
// connection.
func (m *machine) collectDomain() {
	_, d := m.current()
	if d == nil || !d.lost() {
		return
	}
	m.setDomain(nil)
	m.stopPlugging()
	d.close()
	if reason := d.shutdownReason(); reason != "" {
		m.ended = &vmstate.Ended{Reason: reason}
	}
}
