package chapter9

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/test/local"
)

// movableTenantVM is tenantVM without a node.
var movableTenantVM = strings.Replace(tenantVM, "      nodeSelector: {kubernetes.io/hostname: {{.node}}}\n", "", 1)

// strangersDefinition names the network of others.
const strangersDefinition = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: burglar}
spec:
  config: '{"cniVersion":"1.0.0","type":"ovn-k8s-cni-overlay","name":"cluster_udn_c9-shared","netAttachDefName":"{{.namespace}}/burglar","topology":"layer2","role":"{{.role}}","subnets":"203.203.0.0/16,fd00:203::/64"}'
`

// 9.3.2.3: machines of several namespaces on one network, and one of them moves.
func TestSharedPrimaryNetwork(t *testing.T) {
	primaryCUDN(t, "c9-shared", "{matchLabels: {shares: c9-shared}}", "203.203.0.0/16, fd00:203::/64") // first: it goes when nobody uses it
	a, b := tenantPair(t, "shares", "c9-shared")
	stranger := newIsolated(t)
	plain := pod(t, cluster.Namespace(t), "plain", "node-1")
	user := cluster.NewClient(t)
	key, public := user.Key(t, "id_shared")
	cluster.Apply(t, a, movableTenantVM, map[string]string{"name": "mover", "key": public})
	cluster.Apply(t, b, tenantVM, map[string]string{"name": "peer", "node": "node-2", "key": ""})
	box := pod(t, b, "box", "node-1")
	mover, peer := machineAddresses(t, a, "mover"), machineAddresses(t, b, "peer")
	first, second := cluster.Guest(t, a, "mover"), cluster.Guest(t, b, "peer")

	t.Run("9.3.2.3-C7 the role Primary makes it the machines' network", func(t *testing.T) {
		first.Eventually(cluster, boot, "ip -4 -o addr show dev eth0", contains("inet "+mover[0]+"/16"))
		first.Eventually(cluster, soon, "ip route show default", contains("via 203.203.0.1 dev eth0"))
		vmi := cluster.Running(t, a, "mover")
		if i := vmi.Status.Interfaces; len(i) != 1 || i[0].IP != mover[0] {
			t.Errorf("the machine's status says %+v, its network gave %v", i, mover)
		}
		second.Eventually(cluster, boot, "ip -4 -o addr show dev eth0", contains("inet "+peer[0]+"/16"))
	})
	t.Run("9.1.3-C3 one network for several namespaces", func(t *testing.T) {
		for _, ip := range slices.Concat(mover, peer) {
			answersFrom(t, box, "a pod of the second namespace", ip)
		}
		if one, two := nadConfig(t, a, "c9-shared"), nadConfig(t, b, "c9-shared"); !strings.Contains(one, `"name":"cluster_udn_c9-shared"`) || !strings.Contains(two, `"name":"cluster_udn_c9-shared"`) {
			t.Errorf("the namespaces' definitions are %s and %s", one, two)
		}
	})
	t.Run("9.3.2.3-C12 machines of selected namespaces reach each other, others do not reach them", func(t *testing.T) {
		for _, ip := range peer {
			answersFrom(t, first, "the machine of the first namespace", ip)
		}
		for _, from := range []toolbox{plain, stranger.boxes[0]} {
			for _, ip := range from.reached(slices.Concat(mover, peer)...) {
				t.Errorf("pod %s of namespace %s reaches %s", from.name, from.namespace, ip)
			}
		}
		for _, role := range []string{"primary", "secondary"} {
			ns := stranger.boxes[0].namespace
			refusedWith(t, ns, strangersDefinition, map[string]string{"namespace": ns, "role": role}, "is kept for the user-defined networks of the cluster")
		}
	})
	// What follows passes with policies in force, too: they move along, and do not stand in the way of a guest that starts anew.
	policed(t, a, "own-network", `{podSelector: {}, policyTypes: [Ingress, Egress],
  ingress: [{from: [{namespaceSelector: {matchLabels: {shares: c9-shared}}}]}], egress: [{to: [{namespaceSelector: {matchLabels: {shares: c9-shared}}}]}]}`)
	testTenantMigration(t, user, a, first, box, mover)
	t.Run("9.1.3-C5 the same addresses after a migration and a restart of the guest", func(t *testing.T) {
		restartedGuestAnswers(t, user, a, key, mover)
	})
}

// testTenantMigration moves a machine while it talks to a pod.
func testTenantMigration(t *testing.T, user *local.Client, ns string, guest interface{ Run(string) string }, box toolbox, ips []string) {
	box.must("(sleep 3600 | nc -l -p 9000) </dev/null >/tmp/ticks 2>/dev/null &")
	guest.Run("(while true; do echo tick; sleep 1; done | nc " + tenantAddresses(t, cluster.PodReady(t, box.namespace, box.name))[0] + " 9000 >/dev/null 2>&1 &)")
	ticks := func() int {
		n, _ := strconv.Atoi(box.must("grep -c tick /tmp/ticks || true"))
		return n
	}
	cluster.Eventually(t, soon, "the machine's connection", func() error {
		if ticks() == 0 {
			return fmt.Errorf("nothing came")
		}
		return nil
	})
	before := cluster.Running(t, ns, "mover")
	t.Run("9.3.2.2-C1 with layer2 and persistent addresses it can move", func(t *testing.T) {
		if out, err := user.Run(t.Context(), "", "virtctl", "migrate", "mover", "-n", ns); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		if done := migration(t, ns, "mover"); done.Status.Phase != virtv1.MigrationSucceeded {
			t.Fatalf("the migration ended as %s: %+v", done.Status.Phase, done.Status.MigrationState)
		}
	})
	moved := cluster.Running(t, ns, "mover")
	if moved.Status.NodeName == before.Status.NodeName {
		t.Fatalf("the machine is still on %s", moved.Status.NodeName)
	}
	t.Run("9.1.3-C4 it moves without NAT: its connection goes on, from its own address", func(t *testing.T) {
		had := ticks()
		cluster.Eventually(t, soon, "more from the machine on the same connection", func() error {
			if n := ticks(); n <= had+1 {
				return fmt.Errorf("%d lines, and %d before", n, had)
			}
			return nil
		})
		if out := box.must("netstat -tn"); !strings.Contains(out, ips[0]+":") {
			t.Errorf("no connection from %s: %s", ips[0], out)
		}
	})
	t.Run("9.3-C6 its addresses are the same on the other node", func(t *testing.T) {
		if now := machineAddresses(t, ns, "mover"); !slices.Equal(now, ips) {
			t.Errorf("it had %v and has %v", ips, now)
		}
		for _, ip := range ips {
			answersFrom(t, box, "the pod", ip)
		}
	})
}

// restartedGuestAnswers restarts a guest from inside, as its user does, and looks at its addresses afterwards.
func restartedGuestAnswers(t *testing.T, user *local.Client, ns, key string, ips []string) {
	const target = "cloud-user@vm/mover"
	awaitSSH(t, user, ns, key, target)
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	booted, err := sshTo(t.Context(), user, ns, key, target, bootID)
	if err != nil {
		t.Fatal(err)
	}
	cluster.Guest(t, ns, "mover").Run("(sleep 1; reboot) >/dev/null 2>&1 &") // takes its console along
	cluster.Eventually(t, boot, "the guest starts again", func() error {
		now, err := sshTo(t.Context(), user, ns, key, target, bootID)
		if err == nil && now == booted {
			err = fmt.Errorf("it has not stopped")
		}
		return err
	})
	cluster.Eventually(t, soon, "the addresses in the guest", func() error {
		out, err := sshTo(t.Context(), user, ns, key, target, "ip -o addr show dev eth0")
		if err == nil && (!strings.Contains(out, "inet "+ips[0]+"/16") || !strings.Contains(out, "inet6 "+ips[1]+"/")) {
			err = fmt.Errorf("it has %s", out)
		}
		return err
	})
}
