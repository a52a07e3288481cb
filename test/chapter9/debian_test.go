package chapter9

import (
	"fmt"
	"strings"
	"testing"

	"patchbay/test/local"
)

// debianManifest is a VM with a full distribution: its first network card is not virtio, and a configuration drive tells it about both.
const debianManifest = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: full}
spec:
  runStrategy: Always
  template:
    spec:
      terminationGracePeriodSeconds: 5
      nodeSelector: {kubernetes.io/hostname: node-1}
      domain:
        memory: {guest: 512Mi}
        devices:
          disks: [{name: root, disk: {bus: virtio}}, {name: drive, disk: {bus: virtio}}]
          interfaces:
            - {name: default, masquerade: {}, model: e1000e, macAddress: "02:00:00:de:b1:01"}
            - {name: second, bridge: {}, macAddress: "02:00:00:de:b1:02"}
      networks:
        - {name: default, pod: {}}
        - {name: second, multus: {networkName: flat}}
      volumes:
        - {name: root, containerDisk: {image: "patchbay.io/guest/debian:latest"}}
        - name: drive
          cloudInitConfigDrive:
            userData: |
              #cloud-config
              user: cloud-user
              chpasswd: {expire: false, users: [{name: root, password: patchbay, type: text}]}
            networkData: |
              {"links": [{"id": "one", "type": "phy", "ethernet_mac_address": "02:00:00:de:b1:01"},
                         {"id": "two", "type": "phy", "ethernet_mac_address": "02:00:00:de:b1:02"}],
               "networks": [{"id": "pod", "link": "one", "type": "ipv4_dhcp"},
                            {"id": "flat", "link": "two", "type": "ipv4", "ip_address": "10.40.0.14", "netmask": "255.255.255.0"}],
               "services": []}
      accessCredentials:
        - sshPublicKey: {propagationMethod: {configDrive: {}}, source: {secret: {secretName: at-boot}}}
        - sshPublicKey: {propagationMethod: {qemuGuestAgent: {users: [root]}}, source: {secret: {secretName: at-run-time}}}
---
apiVersion: v1
kind: Secret
metadata: {name: at-boot}
stringData: {key: "{{.boot}}"}
---
apiVersion: v1
kind: Secret
metadata: {name: at-run-time}
stringData: {key: "{{.first}}"}
`

// A guest with systemd, cloud-init, OpenSSH and a network card without virtio. It takes long to boot: what only such a guest shows is here.
func TestDebianGuest(t *testing.T) {
	ns := cluster.Namespace(t)
	user := cluster.NewClient(t)
	booted, bootPublic := user.Key(t, "id_boot")
	first, firstPublic := user.Key(t, "id_first")
	second, secondPublic := user.Key(t, "id_second")
	cluster.Apply(t, ns, flatManifest, map[string]string{"name": "flat", "namespace": ns})
	cluster.Apply(t, ns, debianManifest, map[string]string{"boot": bootPublic, "first": firstPublic})
	guest := cluster.Guest(t, ns, "full")
	const mtu = "cat /sys/bus/pci/drivers/e1000e/0000:*/net/*/mtu"

	t.Run("9.2.3-C6 another card has DHCP", func(t *testing.T) {
		guest.Eventually(cluster, boot, mtu, func(s string) bool { return s == fmt.Sprint(podMTU) })
	})
	t.Run("9.9.1.1-C3 a static address from a configuration drive, beside a dynamic one", func(t *testing.T) {
		guest.Eventually(cluster, boot, "ip -4 -o addr", func(s string) bool {
			return strings.Contains(s, "inet 10.40.0.14/24") && strings.Contains(s, "inet 10.0.2.2/24")
		})
		if i := addressesOf(t, ns, "full", "second", "10.40.0.14"); !strings.Contains(i.InfoSource, "guest-agent") && !strings.Contains(i.InfoSource, "observed") {
			t.Errorf("interface %+v", i)
		}
	})
	t.Run("SSH.1-C1 a key on the configuration drive", func(t *testing.T) {
		awaitSSH(t, user, ns, booted, "cloud-user@vm/full")
	})
	t.Run("SSH.2-C4 the guest agent adds, rotates and revokes keys", func(t *testing.T) {
		awaitSSH(t, user, ns, first, "root@vm/full")
		replaceSecret(t, ns, "at-run-time", fmt.Sprintf("{key: %q}", secondPublic))
		awaitSSH(t, user, ns, second, "root@vm/full")
		awaitRefusal(t, user, ns, first, "root@vm/full")
		replaceSecret(t, ns, "at-run-time", "{}")
		awaitRefusal(t, user, ns, second, "root@vm/full")
		if out, err := sshTo(t.Context(), user, ns, booted, "cloud-user@vm/full", "true"); err != nil {
			t.Errorf("the other user's key: %s", local.Failed(out, err))
		}
	})
	t.Run("9.2.3-C6 another card has nothing else", func(t *testing.T) {
		guest.Run("systemctl stop systemd-networkd.socket systemd-networkd networking 2>/dev/null; modprobe -r e1000e && modprobe e1000e")
		guest.Eventually(cluster, soon, mtu, func(s string) bool { return s == "1500" })
	})
}
