package vmdriver

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	apiclient "sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/agent/credentials"
	"patchbay/internal/agent/guestnet"
	"patchbay/internal/launcher/client"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu"
)

// claims describes the volumes that are backed by a claim.
func (d *Driver) claims(ctx context.Context, vmi *virtv1.VirtualMachineInstance) (map[string]qemu.Claim, error) {
	claims := map[string]qemu.Claim{}
	for _, v := range vmi.Spec.Volumes {
		name := claimName(v)
		if name == "" {
			continue
		}
		var claim corev1.PersistentVolumeClaim
		if err := d.Live.Get(ctx, apiclient.ObjectKey{Namespace: vmi.Namespace, Name: name}, &claim); err != nil {
			return nil, fmt.Errorf("volume %q: read claim %s: %w", v.Name, name, err)
		}
		capacity := claim.Status.Capacity[corev1.ResourceStorage]
		claims[v.Name] = qemu.Claim{
			Block:     claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock,
			SizeBytes: capacity.Value(),
		}
	}
	return claims, nil
}

func claimName(v virtv1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.DataVolume != nil:
		return v.DataVolume.Name
	case v.Ephemeral != nil && v.Ephemeral.PersistentVolumeClaim != nil:
		return v.Ephemeral.PersistentVolumeClaim.ClaimName
	default:
		return ""
	}
}

// secrets is where the kubelet keeps the secrets of a pod's access credentials, so that the agent needs no right to read secrets.
func (d *Driver) secrets(pod types.UID) credentials.Dir {
	root := filepath.Join(d.KubeletRoot, "pods", string(pod), "volumes", "kubernetes.io~secret")
	return func(secret string) string { return filepath.Join(root, protocol.CredentialVolume(secret)) }
}

// resolvLimit is how much of a pod's resolv.conf is read, in bytes.
const resolvLimit = 1 << 16

// podDNS reads the resolver that the kubelet gave to the launcher's container: it follows from the pod's DNS policy and from the
// node, and is nowhere else written down.
func podDNS(ctx context.Context, dir *client.RunDir, subdomain string) (guestnet.DNS, error) {
	pid, err := launcherPID(ctx, dir)
	if err != nil {
		return guestnet.DNS{}, err
	}
	// Rooted: a link in the container must not lead to a file of the node.
	root, err := os.OpenRoot(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil {
		return guestnet.DNS{}, fmt.Errorf("enter the launcher's file system: %w", err)
	}
	defer root.Close()
	file, err := root.Open("etc/resolv.conf")
	if os.IsNotExist(err) {
		return guestnet.ParseResolvConf("", subdomain), nil
	}
	if err != nil {
		return guestnet.DNS{}, fmt.Errorf("read the launcher's resolv.conf: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, resolvLimit))
	if err != nil {
		return guestnet.DNS{}, fmt.Errorf("read the launcher's resolv.conf: %w", err)
	}
	return guestnet.ParseResolvConf(string(text), subdomain), nil
}

// launcherPID asks the kernel which process listens on the launcher's socket.
func launcherPID(ctx context.Context, dir *client.RunDir) (int32, error) {
	conn, err := dir.Dial(ctx, protocol.SocketName)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	var failure error
	err = raw.Control(func(fd uintptr) { peer, failure = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err == nil {
		err = failure
	}
	if err != nil {
		return 0, fmt.Errorf("find the launcher's process: %w", err)
	}
	// A connection without a request would be a fault in the launcher's log.
	if err := json.NewEncoder(conn).Encode(protocol.Request{Status: &protocol.Status{}}); err != nil {
		return 0, fmt.Errorf("ask the launcher: %w", err)
	}
	if _, err := bufio.NewReader(conn).ReadBytes('\n'); err != nil {
		return 0, fmt.Errorf("ask the launcher: %w", err)
	}
	return peer.Pid, nil
}

// maxHostname is the longest DNS label, in bytes.
const maxHostname = 63

// hostname is the pod's: what the user chose, or the first label of the instance's name.
func hostname(vmi *virtv1.VirtualMachineInstance) string {
	if vmi.Spec.Hostname != "" {
		return vmi.Spec.Hostname
	}
	label, _, _ := strings.Cut(vmi.Name, ".")
	return strings.TrimRight(label[:min(len(label), maxHostname)], "-")
}
