package chapter9

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// movable is vmManifest without a node.
var movable = strings.Replace(vmManifest, "      nodeSelector: {kubernetes.io/hostname: {{.node}}}\n", "", 1)

// migration waits for the end of the newest migration of a machine.
func migration(t *testing.T, ns, name string) virtv1.VirtualMachineInstanceMigration {
	t.Helper()
	var newest virtv1.VirtualMachineInstanceMigration
	cluster.Eventually(t, boot, "the migration of "+name+" ends", func() error {
		out, err := cluster.Kubectl(t.Context(), "get", "vmim", "-n", ns, "-l", virtv1.MigrationSelectorLabel+"="+name,
			"--sort-by", ".metadata.creationTimestamp", "-o", "json")
		var list virtv1.VirtualMachineInstanceMigrationList
		if err == nil {
			err = json.Unmarshal([]byte(out), &list)
		}
		if err != nil || len(list.Items) == 0 {
			return fmt.Errorf("%d migrations, %v", len(list.Items), err)
		}
		newest = list.Items[len(list.Items)-1]
		if !newest.IsFinal() {
			return fmt.Errorf("phase %s", newest.Status.Phase)
		}
		return nil
	})
	return newest
}

func wentThrough(m virtv1.VirtualMachineInstanceMigration) []string {
	var phases []string
	for _, p := range m.Status.PhaseTransitionTimestamps {
		phases = append(phases, string(p.Phase))
	}
	return phases
}

func TestLiveMigration(t *testing.T) {
	ns := cluster.Namespace(t)
	spanningNetworks(t, ns)
	cluster.Apply(t, ns, movableOnLAN, machine{name: "mover", networkData: lanData}.values())
	inFront(t, ns)
	one, two := spanningNodes(t, ns)
	guest := cluster.Guest(t, ns, "mover")
	guest.Eventually(cluster, boot, "ip -4 -o addr show eth0", contains("inet 10.0.2.2/24"))
	t.Run("9.1-C6 another plugin makes a pod's first interface", func(t *testing.T) { reachInFront(t, ns, one) })
	before := cluster.Running(t, ns, "mover")
	guest.Run("echo kept >/tmp/mark; dd if=/dev/urandom of=/root/data bs=64k count=16 2>/dev/null; sync")
	identity := guest.Run("cat /proc/sys/kernel/random/boot_id; md5sum /root/data")
	user := cluster.NewClient(t)
	box := pod(t, ns, "box", "node-1")
	old := before.Status.Interfaces[0].IP
	box.must("(while sleep 1; do echo tick; done | nc " + old + " 7) >/tmp/echoes 2>/dev/null &")
	echoes := func() string { return box.must("grep -c tick /tmp/echoes || true") }
	cluster.Eventually(t, soon, "a connection to the machine", func() error {
		if n := echoes(); n == "0" {
			return errors.New("nothing comes back")
		}
		return nil
	})
	phases := watchPhases(t, ns)

	var moved *virtv1.VirtualMachineInstance
	var done virtv1.VirtualMachineInstanceMigration
	t.Run("virtctl migrate moves a running guest with its memory and disks", func(t *testing.T) {
		out, err := user.Run(t.Context(), "", "virtctl", "migrate", "mover", "-n", ns)
		if err != nil || !strings.Contains(out, "VM mover was scheduled to migrate") {
			t.Fatalf("printed %q, %v", out, err)
		}
		if done = migration(t, ns, "mover"); done.Status.Phase != virtv1.MigrationSucceeded {
			t.Fatalf("the migration ended as %s: %+v", done.Status.Phase, done.Status.MigrationState)
		}
		moved = cluster.Running(t, ns, "mover")
		if moved.UID != before.UID || moved.Status.NodeName == before.Status.NodeName || moved.Labels[virtv1.NodeNameLabel] != moved.Status.NodeName {
			t.Errorf("was on %s, is on %s with label %s", before.Status.NodeName, moved.Status.NodeName, moved.Labels[virtv1.NodeNameLabel])
		}
		guest := cluster.Guest(t, ns, "mover") // its console is on another node now
		if now := guest.Run("cat /proc/sys/kernel/random/boot_id; echo 3 >/proc/sys/vm/drop_caches; md5sum /root/data"); now != identity {
			t.Errorf("the guest was %q, is %q", identity, now)
		}
		if mark := guest.Run("cat /tmp/mark"); mark != "kept" {
			t.Errorf("the guest's memory holds %q", mark)
		}
	})
	if moved == nil {
		t.FailNow()
	}
	t.Run("9.6.2-K2 every phase is seen, in order", func(t *testing.T) {
		want := []string{"Pending", "Scheduling", "Scheduled", "PreparingTarget", "TargetReady", "Running", "Succeeded"}
		if got := wentThrough(done); !slices.Equal(got, want) {
			t.Errorf("phases %v, want %v", got, want)
		}
		// A watch shows each of them in a row of its own.
		if got := phases(); !slices.Equal(got, want) {
			t.Errorf("the watch showed %v, want %v", got, want)
		}
		out, err := cluster.Kubectl(t.Context(), "get", "vmim", "-n", ns)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if err != nil || strings.Join(strings.Fields(lines[0]), " ") != "NAME PHASE VMI" {
			t.Errorf("kubectl get vmim prints %q, %v", out, err)
		}
		if !strings.HasPrefix(lines[len(lines)-1], "kubevirt-migrate-vm-") || !strings.HasSuffix(lines[len(lines)-1], "mover") {
			t.Errorf("a row reads %q", lines[len(lines)-1])
		}
	})
	t.Run("9.8.1-K2 the target's address is one bare IP", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "get", "vmi", "mover", "-n", ns, "-o", "jsonpath={.status.migrationState.targetNodeAddress}")
		address, bad := netip.ParseAddr(out)
		if err != nil || bad != nil {
			t.Fatalf("printed %q, %v", out, err)
		}
		node := &corev1.Node{}
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Name: moved.Status.NodeName}, node); err != nil {
			t.Fatal(err)
		}
		if address.String() != node.Status.Addresses[0].Address {
			t.Errorf("address %s, want the node's own %s while no network is named", address, node.Status.Addresses[0].Address)
		}
	})
	t.Run("9.2-C2 on the pod network the address changes and connections end", func(t *testing.T) {
		was, is := before.Status.Interfaces[0].IP, moved.Status.Interfaces[0].IP
		pod := cluster.LauncherPod(t, moved)
		if is == was || is != pod.Status.PodIP {
			t.Errorf("the VMI showed %s and shows %s, its pod has %s", was, is, pod.Status.PodIP)
		}
		cluster.Guest(t, ns, "mover").Eventually(cluster, boot, "ping -c1 -W2 "+node2IP(t), contains(" 0% packet loss"))
		had := echoes()
		if out, err := box.run("ping -n -c3 -W1 " + was); err == nil {
			t.Errorf("the old address %s still answers: %s", was, out)
		}
		if has := echoes(); has != had {
			t.Errorf("the old connection goes on: %s echoes, then %s", had, has)
		}
		if r := box.connect(is, 7); r != answered {
			t.Errorf("at the new address %s a new connection is %s", is, r)
		}
	})
	t.Run("the source's pod has completed", func(t *testing.T) {
		source := &corev1.Pod{}
		key := client.ObjectKey{Namespace: ns, Name: moved.Status.MigrationState.SourcePod}
		cluster.Eventually(t, soon, "the end of the source's pod", func() error {
			err := cluster.Client.Get(t.Context(), key, source)
			if err == nil && source.Status.Phase != corev1.PodSucceeded {
				err = fmt.Errorf("phase %s", source.Status.Phase)
			}
			return err
		})
	})
	t.Run("9.1-C6 an address of a range that spans the nodes moves with its guest", func(t *testing.T) {
		address := strings.Fields(strings.TrimSpace(guestOnLAN(t, ns)))[3]
		ip, err := netip.ParsePrefix(address)
		if err != nil || !factoryRange.Contains(ip.Addr()) || before.Status.Interfaces[1].IP != ip.Addr().String() {
			t.Errorf("the guest has %s, its instance said %s", address, before.Status.Interfaces[1].IP)
		}
		for _, box := range []toolbox{one, two} {
			cluster.Eventually(t, soon, box.name+" reaches the guest", func() error { return box.pings(ip.Addr().String()) })
		}
	})
	migrateOverNetwork(t, ns)
	t.Run("virtctl migrate-cancel leaves the guest where it is", func(t *testing.T) {
		here := cluster.Running(t, ns, "mover").Status.NodeName
		if out, err := user.Run(t.Context(), "", "virtctl", "migrate", "mover", "-n", ns); err != nil {
			t.Fatal(out, err)
		}
		if out, err := user.Run(t.Context(), "", "virtctl", "migrate-cancel", "mover", "-n", ns); err != nil {
			t.Fatal(out, err)
		}
		cluster.Eventually(t, boot, "the end of the cancelled migration", func() error {
			vmi := cluster.Running(t, ns, "mover")
			if ms := vmi.Status.MigrationState; !ms.Completed || vmi.Status.NodeName != here {
				return fmt.Errorf("on %s, state %+v", vmi.Status.NodeName, ms)
			}
			return nil
		})
		cluster.Guest(t, ns, "mover").Run("cat /tmp/mark")
	})
}

// guestOnLAN is what the guest says of its second NIC.
func guestOnLAN(t *testing.T, ns string) string {
	t.Helper()
	return cluster.Guest(t, ns, "mover").Eventually(cluster, boot, "ip -4 -o addr show eth1", contains("inet 10.77.0."))
}

// node2IP is an address that does not move.
func node2IP(t *testing.T) string {
	t.Helper()
	node := &corev1.Node{}
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Name: "node-2"}, node); err != nil {
		t.Fatal(err)
	}
	return node.Status.Addresses[0].Address
}

// drain empties the guest's node as an administrator does.
func drain(t *testing.T, ns string) {
	vmi := cluster.Running(t, ns, "mover")
	node, pod := vmi.Status.NodeName, cluster.LauncherPod(t, vmi)
	evict := func(dry bool) error {
		eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pod.Name}}
		if dry {
			eviction.DeleteOptions = &metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}
		}
		return cluster.Client.SubResource("eviction").Create(t.Context(), pod, eviction)
	}
	if err := evict(true); !apierrors.IsTooManyRequests(err) || !strings.Contains(err.Error(), fmt.Sprintf("Eviction triggered evacuation of VMI %q", ns+"/mover")) {
		t.Errorf("the eviction (dry run) was answered %v", err)
	}
	out, err := cluster.Kubectl(t.Context(), "drain", node, "--pod-selector", "kubevirt.io=virt-launcher,app=mover", "--delete-emptydir-data", "--force", "--timeout", "3m")
	defer func() {
		if out, err := cluster.Kubectl(t.Context(), "uncordon", node); err != nil {
			t.Error(out, err)
		}
	}()
	if err != nil {
		t.Fatalf("drain printed %q, %v", out, err)
	}
	m := migration(t, ns, "mover")
	if !strings.HasPrefix(m.Name, "kubevirt-evacuation-") || m.Annotations[virtv1.EvacuationMigrationAnnotation] != node || m.Status.Phase != virtv1.MigrationSucceeded {
		t.Errorf("migration %s of node %s: %s", m.Name, m.Annotations[virtv1.EvacuationMigrationAnnotation], m.Status.Phase)
	}
	cluster.Eventually(t, soon, "the guest runs elsewhere and no evacuation is noted", func() error {
		if vmi = cluster.Running(t, ns, "mover"); vmi.Status.NodeName == node || vmi.Status.EvacuationNodeName != "" {
			return fmt.Errorf("on %s, evacuation of %q", vmi.Status.NodeName, vmi.Status.EvacuationNodeName)
		}
		return nil
	})
}
