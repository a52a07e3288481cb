package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	boots    = 3
	guestMiB = 128
)

// measureBoot compares the time from applying a VM to its first ping with a bare QEMU boot of the same guest, one after the other
// so that both see the same machine, and weighs the VM's processes.
func measureBoot(ctx context.Context, b *bench) ([]row, error) {
	ns, err := b.namespace(ctx, "bench-boot")
	if err != nil {
		return nil, err
	}
	defer b.cluster.Client.Delete(context.WithoutCancel(ctx), ns)
	var ours, bare []time.Duration
	var weight float64
	for n := range boots {
		plain, err := bareBoot(ctx, b.cluster.Root())
		if err != nil {
			return nil, fmt.Errorf("bare boot: %w", err)
		}
		took, mib, err := b.bootVM(ctx, ns.Name, fmt.Sprintf("vm-%d", n))
		if err != nil {
			return nil, err
		}
		bare, ours, weight = append(bare, plain), append(ours, took), mib
	}
	slices.Sort(ours)
	slices.Sort(bare)
	over := ours[boots/2] - bare[boots/2]
	return []row{
		{Figure: fmt.Sprintf("apply → first ping, median of %d", boots), Unit: "s", Ours: ours[boots/2].Seconds(), Bare: bare[boots/2].Seconds(), Goal: "bare + 1.5 s"},
		{Figure: "… over the bare boot", Unit: "s", Ours: over.Seconds(), Goal: "1.5"},
		{Figure: "memory per VM besides guest RAM (PSS)", Unit: "MiB", Ours: weight, Goal: "60"},
	}, nil
}

func (b *bench) bootVM(ctx context.Context, namespace, name string) (took time.Duration, mib float64, err error) {
	begin := time.Now()
	vmi := benchVMI(namespace, name, "node-1")
	if err := b.cluster.Client.Create(ctx, vmi); err != nil {
		return 0, 0, err
	}
	defer b.cluster.Client.Delete(context.WithoutCancel(ctx), vmi)
	ip, err := b.waitForIP(ctx, vmi)
	if err != nil {
		return 0, 0, err
	}
	if err := pingUntil(ctx, "pb-"+clusterName+"-node-2", ip); err != nil {
		return 0, 0, err
	}
	took = time.Since(begin)
	mib, err = vmWeight(namespace + "_" + name)
	return took, mib, err
}

func benchVMI(namespace, name, node string) *virtv1.VirtualMachineInstance {
	memory := resource.MustParse(strconv.Itoa(guestMiB) + "Mi")
	grace := int64(0)
	return &virtv1.VirtualMachineInstance{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: virtv1.VirtualMachineInstanceSpec{
			TerminationGracePeriodSeconds: &grace,
			NodeSelector:                  map[string]string{"kubernetes.io/hostname": node},
			Domain: virtv1.DomainSpec{
				Memory: &virtv1.Memory{Guest: &memory},
				Devices: virtv1.Devices{Disks: []virtv1.Disk{{
					Name: "root", DiskDevice: virtv1.DiskDevice{Disk: &virtv1.DiskTarget{Bus: virtv1.DiskBusVirtio}},
				}}},
			},
			Volumes: []virtv1.Volume{{Name: "root", VolumeSource: virtv1.VolumeSource{
				ContainerDisk: &virtv1.ContainerDiskSource{Image: "patchbay.io/guest/tiny:latest", ImagePullPolicy: corev1.PullIfNotPresent},
			}}},
		},
	}
}

func (b *bench) waitForIP(ctx context.Context, vmi *virtv1.VirtualMachineInstance) (string, error) {
	err := b.until(ctx, 2*time.Minute, func() error {
		if err := b.cluster.Client.Get(ctx, client.ObjectKeyFromObject(vmi), vmi); err != nil {
			return err
		}
		if len(vmi.Status.Interfaces) == 0 || vmi.Status.Interfaces[0].IP == "" {
			return fmt.Errorf("VMI %s is %q and has no IP", vmi.Name, vmi.Status.Phase)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return vmi.Status.Interfaces[0].IP, nil
}

// pingUntil pings from a network namespace, ten times a second, until an answer comes.
func pingUntil(ctx context.Context, namespace, ip string) error {
	bounded, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		out, err := exec.CommandContext(bounded, "nsenter", "--net=/run/netns/"+namespace, "ping", "-c1", "-W1", "-i0.1", ip).CombinedOutput()
		if err == nil {
			return nil
		}
		if bounded.Err() != nil {
			return fmt.Errorf("ping %s from %s: %w: %s", ip, namespace, err, out)
		}
	}
}

// vmWeight is the memory of a VM pod's processes in MiB, without the guest's own.
func vmWeight(guestName string) (float64, error) {
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	total := 0.0
	found := false
	for _, path := range processes {
		line, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		guest := bytes.Contains(line, []byte("qemu-system")) && bytes.Contains(line, []byte("guest="+guestName+","))
		launcher := bytes.HasPrefix(line, []byte("/patchbay-launcher"))
		if !guest && !launcher {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		mib, err := pss(pid, func(kib int) bool { return kib>>10 == guestMiB })
		if err != nil {
			return 0, err
		}
		total += mib
		found = found || guest
	}
	if !found {
		return 0, fmt.Errorf("no QEMU process runs guest %s", guestName)
	}
	return total, nil
}

// bareBoot boots the guest's disk with plain QEMU on a tap in a namespace of its own, and returns the time to its first ping.
func bareBoot(ctx context.Context, root string) (time.Duration, error) {
	const ns, address = "pb-bench-bare", "10.0.2.2"
	dir, err := os.MkdirTemp("", "pb-bench-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	_ = exec.CommandContext(ctx, "ip", "netns", "del", ns).Run() // of a run that was killed
	defer exec.CommandContext(context.WithoutCancel(ctx), "ip", "netns", "del", ns).Run()
	overlay := filepath.Join(dir, "overlay.qcow2")
	dhcp := filepath.Join(dir, "udhcpd.conf")
	config := fmt.Sprintf("interface tap0\nstart %s\nend %s\noption subnet 255.255.255.0\noption router 10.0.2.1\nlease_file %s/leases\npidfile %s/pid\n", address, address, dir, dir)
	if err := os.WriteFile(dhcp, []byte(config), 0o600); err != nil {
		return 0, err
	}
	for _, command := range []string{
		"ip netns add " + ns,
		"ip -n " + ns + " tuntap add tap0 mode tap vnet_hdr",
		"ip -n " + ns + " addr add 10.0.2.1/24 dev tap0",
		"ip -n " + ns + " link set tap0 up",
		"qemu-img create -q -f qcow2 -F qcow2 -b " + filepath.Join(root, "build/guests/tiny.qcow2") + " " + overlay,
	} {
		words := strings.Fields(command)
		if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%s: %w: %s", command, err, out)
		}
	}
	within := func(args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + ns}, args...)...)
	}
	server := within("busybox", "udhcpd", "-f", dhcp)
	if err := server.Start(); err != nil {
		return 0, err
	}
	defer stop(server)
	begin := time.Now()
	guest := within("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", strconv.Itoa(guestMiB), "-display", "none", "-nodefaults",
		"-drive", "file="+overlay+",if=virtio", "-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n,romfile=")
	if err := guest.Start(); err != nil {
		return 0, err
	}
	defer stop(guest)
	if err := pingUntil(ctx, ns, address); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

func stop(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}
