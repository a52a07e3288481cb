package chapter9

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/test/local"
)

// accessManifest is a VM and the secret that lets people in, in one file.
const accessManifest = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: {{.name}}}
spec:
  runStrategy: {{.strategy}}
  template:
    spec:
      terminationGracePeriodSeconds: 5
      domain:
        memory: {guest: 128Mi}
        devices:
          disks:
            - {name: root, disk: {bus: virtio}}
            - {name: cloudinitdisk, disk: {bus: virtio}}
          interfaces: [{name: default, masquerade: {}}]
      networks: [{name: default, pod: {}}]
      volumes:
        - {name: root, containerDisk: {image: "patchbay.io/guest/tiny:latest"}}
        - name: cloudinitdisk
          {{.source}}:
            userData: |-
              #cloud-config
              user: cloud-user
      accessCredentials: {{.credentials}}
---
apiVersion: v1
kind: Secret
metadata: {name: {{.name}}-keys}
stringData: {{.keys}}
`

func accessValues(name, strategy, method, key string) map[string]string {
	source := "cloudInitNoCloud"
	if strings.Contains(method, "configDrive") {
		source = "cloudInitConfigDrive"
	}
	return map[string]string{
		"name": name, "strategy": strategy, "source": source, "keys": fmt.Sprintf("{key: %q}", key),
		"credentials": fmt.Sprintf("[{sshPublicKey: {propagationMethod: %s, source: {secret: {secretName: %s-keys}}}}]", method, name),
	}
}

// sshTo runs a command in a guest through virtctl ssh.
func sshTo(ctx context.Context, user *local.Client, namespace, key, target, command string) (string, error) {
	args := []string{"-n", namespace, "ssh", target, "-i", key, "--command", command}
	for _, option := range user.SSHOptions() {
		args = append(args, "-t", option)
	}
	out, err := user.Run(ctx, "", "virtctl", args...)
	return strings.TrimSpace(out), err
}

// awaitSSH waits until a guest lets a key in.
func awaitSSH(t *testing.T, user *local.Client, namespace, key, target string) {
	t.Helper()
	cluster.Eventually(t, boot, "ssh to "+target, func() error {
		_, err := sshTo(t.Context(), user, namespace, key, target, "true")
		return err
	})
}

// awaitRefusal waits until a guest does not let a key in any more.
func awaitRefusal(t *testing.T, user *local.Client, namespace, key, target string) {
	t.Helper()
	cluster.Eventually(t, boot, "no ssh to "+target, func() error {
		out, err := sshTo(t.Context(), user, namespace, key, target, "true")
		if err != nil && strings.Contains(err.Error(), "Permission denied") {
			return nil
		}
		return fmt.Errorf("%s", local.Failed(out, err))
	})
}

// SSH.1: a key that is there from the first boot.
func TestStaticKey(t *testing.T) {
	ns := cluster.Namespace(t)
	user := cluster.NewClient(t)
	key, public := user.Key(t, "id_static")
	stranger, _ := user.Key(t, "id_stranger")
	t.Run("SSH.1-K1 ssh-keygen makes the pair", func(t *testing.T) {
		if !strings.HasPrefix(public, "ssh-ed25519 ") {
			t.Errorf("public key %q", public)
		}
	})
	t.Run("SSH.1-K2 the VM and the Secret are in one file", func(t *testing.T) {
		cluster.Apply(t, ns, accessManifest, accessValues("static", "Halted", "{noCloud: {}}", public))
		cluster.Apply(t, ns, accessManifest, accessValues("drive", "Always", "{configDrive: {}}", public))
	})
	t.Run("SSH.1-K3 virtctl start starts it", func(t *testing.T) {
		out, err := user.Run(t.Context(), "", "virtctl", "start", "static", "-n", ns)
		if err != nil || !strings.Contains(out, "VM static was scheduled to start") {
			t.Errorf("%q, %v", out, err)
		}
		cluster.Running(t, ns, "static")
	})
	t.Run("SSH.1-K4 describe shows the credentials", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "describe", "vm", "static", "-n", ns)
		if err != nil || !strings.Contains(out, "Access Credentials:") || !strings.Contains(out, "Secret Name:  static-keys") {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("SSH.1-C1 the key is added at first boot", func(t *testing.T) {
		for _, name := range []string{"static", "drive"} {
			awaitSSH(t, user, ns, key, "cloud-user@vm/"+name)
			if out, err := sshTo(t.Context(), user, ns, stranger, "cloud-user@vm/"+name, "true"); err == nil || !strings.Contains(err.Error(), "Permission denied") {
				t.Errorf("%s: with another key: %s", name, local.Failed(out, err))
			}
		}
	})
	t.Run("9.1.7-C2 first boot: the guest's accounts have the key", func(t *testing.T) {
		out, err := sshTo(t.Context(), user, ns, key, "cloud-user@vm/static", "cat .ssh/authorized_keys; whoami")
		if err != nil || !strings.Contains(out, public) || !strings.HasSuffix(out, "cloud-user") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("SSH.1-C2 the user data is not changed", func(t *testing.T) {
		vmi := cluster.Running(t, ns, "static")
		if data := vmi.Spec.Volumes[1].CloudInitNoCloud.UserData; data != "#cloud-config\nuser: cloud-user" {
			t.Errorf("user data %q", data)
		}
	})
	t.Run("SSH.1-C3 the Secret is taken from the VM's namespace", func(t *testing.T) {
		elsewhere := cluster.Namespace(t)
		values := accessValues("static", "Always", "{noCloud: {}}", public)
		vm, _, _ := strings.Cut(accessManifest, "---")
		cluster.Apply(t, elsewhere, vm, values) // whose secret is in the other namespace
		cluster.Eventually(t, soon, "an event that names the secret", func() error {
			out, err := cluster.Kubectl(t.Context(), "get", "events", "-n", elsewhere)
			if err == nil && !strings.Contains(out, `secret "static-keys" not found`) {
				err = fmt.Errorf("events:\n%s", out)
			}
			return err
		})
	})
	t.Run("SSH.1-C5 a key of the project goes to all its new VMs", func(t *testing.T) {
		if out, err := cluster.Kubectl(t.Context(), "annotate", "namespace", ns, "patchbay.io/ssh-keys=drive-keys"); err != nil {
			t.Fatal(out, err)
		}
		cluster.Eventually(t, soon, "the key in a new VM", func() error { // the controller has to see the annotation first
			cluster.Apply(t, ns, attachingManifest, attachedTo("project", "{name: default, masquerade: {}}", "{name: default, pod: {}}"))
			if vm := readVM(t, ns, "project"); len(vm.Spec.Template.Spec.AccessCredentials) == 0 {
				out, err := cluster.Kubectl(t.Context(), "delete", "vm", "project", "-n", ns)
				return fmt.Errorf("not there yet: %s %v", out, err)
			}
			return nil
		})
		awaitSSH(t, user, ns, key, "patchbay@vm/project")
		if vm := readVM(t, ns, "static"); len(vm.Spec.Template.Spec.AccessCredentials) != 1 {
			t.Errorf("the older VM has %+v", vm.Spec.Template.Spec.AccessCredentials)
		}
	})
	t.Run("SSH.1-C4 the Secret stays when the VM is deleted", func(t *testing.T) {
		if out, err := cluster.Kubectl(t.Context(), "delete", "vm", "drive", "-n", ns); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "drive-keys"}, &corev1.Secret{}); err != nil {
			t.Error(err)
		}
	})
}

// SSH.2: keys and passwords that are given to a running guest.
func TestDynamicKey(t *testing.T) {
	ns := cluster.Namespace(t)
	user := cluster.NewClient(t)
	first, firstPublic := user.Key(t, "id_first")
	second, secondPublic := user.Key(t, "id_second")
	values := accessValues("dynamic", "Always", `{qemuGuestAgent: {users: ["cloud-user", "root"]}}`, firstPublic)
	values["credentials"] = strings.TrimSuffix(values["credentials"], "]") +
		", {userPassword: {propagationMethod: {qemuGuestAgent: {}}, source: {secret: {secretName: dynamic-words}}}}]"
	cluster.Apply(t, ns, "apiVersion: v1\nkind: Secret\nmetadata: {name: dynamic-words}\nstringData: {cloud-user: first-word}\n", nil)
	cluster.Apply(t, ns, accessManifest, values)
	cluster.Running(t, ns, "dynamic")

	t.Run("SSH.2-K1 describe shows the guest agent and its users", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "describe", "vm", "dynamic", "-n", ns)
		if err != nil || !strings.Contains(out, "Qemu Guest Agent:") || !strings.Contains(out, "cloud-user") {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("SSH.2-C2 the guest agent writes the key", func(t *testing.T) {
		cluster.Eventually(t, boot, "AccessCredentialsSynchronized", func() error {
			vmi := cluster.Running(t, ns, "dynamic")
			for _, c := range vmi.Status.Conditions {
				if c.Type == virtv1.VirtualMachineInstanceAccessCredentialsSynchronized && c.Status == corev1.ConditionTrue {
					return nil
				}
			}
			return fmt.Errorf("conditions %+v", vmi.Status.Conditions)
		})
		awaitSSH(t, user, ns, first, "cloud-user@vm/dynamic")
	})
	t.Run("SSH.2-C3 every listed account gets the key", func(t *testing.T) {
		awaitSSH(t, user, ns, first, "root@vm/dynamic")
	})
	passwordIs := func(word string) error {
		const check = `hash=$(awk -F: '$1=="cloud-user"{print $2}' /etc/shadow); salt=$(echo "$hash" | cut -d'$' -f3); [ "$(busybox mkpasswd -m sha512 -S "$salt" %s)" = "$hash" ]`
		_, err := sshTo(t.Context(), user, ns, first, "root@vm/dynamic", fmt.Sprintf(check, word))
		return err
	}
	t.Run("user passwords are set", func(t *testing.T) {
		cluster.Eventually(t, soon, "the first password", func() error { return passwordIs("first-word") })
		replaceSecret(t, ns, "dynamic-words", "cloud-user: second-word")
		cluster.Eventually(t, boot, "the second password", func() error { return passwordIs("second-word") })
	})
	t.Run("SSH.2-C7 authorized_keys belongs to the agent", func(t *testing.T) {
		out, err := sshTo(t.Context(), user, ns, first, "cloud-user@vm/dynamic", "echo '"+secondPublic+"' >> .ssh/authorized_keys; cat .ssh/authorized_keys")
		if err != nil || !strings.Contains(out, secondPublic) {
			t.Fatalf("%v: %s", err, out)
		}
		replaceSecret(t, ns, "dynamic-keys", fmt.Sprintf("{key: %q, note: '# rewritten'}", firstPublic))
		awaitRefusal(t, user, ns, second, "cloud-user@vm/dynamic")
	})
	t.Run("SSH.2-C8 one Secret holds several keys", func(t *testing.T) {
		replaceSecret(t, ns, "dynamic-keys", fmt.Sprintf("{key: %q}", firstPublic+"\n"+secondPublic))
		awaitSSH(t, user, ns, second, "cloud-user@vm/dynamic")
		awaitSSH(t, user, ns, first, "cloud-user@vm/dynamic")
	})
	t.Run("SSH.2-C4 editing the Secret rotates and revokes", func(t *testing.T) {
		replaceSecret(t, ns, "dynamic-keys", fmt.Sprintf("{key: %q}", secondPublic))
		awaitRefusal(t, user, ns, first, "cloud-user@vm/dynamic")
		awaitSSH(t, user, ns, second, "cloud-user@vm/dynamic")
		replaceSecret(t, ns, "dynamic-keys", "{}")
		awaitRefusal(t, user, ns, second, "cloud-user@vm/dynamic")
		awaitRefusal(t, user, ns, second, "root@vm/dynamic")
	})
	t.Run("SSH.2-C1 without a restart", func(t *testing.T) {
		if pod := cluster.LauncherPod(t, cluster.Running(t, ns, "dynamic")); pod.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("the pod restarted")
		}
	})
	t.Run("9.1.7-C2 at run time: keys came and went", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "get", "events", "-n", ns, "--field-selector", "reason=AccessCredentialsSyncSuccess")
		if err != nil || !strings.Contains(out, "Access credentials sync successful.") {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("SSH.2-C6 another Secret needs a restart", func(t *testing.T) {
		patch := `[{"op":"add","path":"/spec/template/spec/accessCredentials/-","value":{"sshPublicKey":{"source":{"secret":{"secretName":"more-keys"}},"propagationMethod":{"qemuGuestAgent":{"users":["root"]}}}}}]`
		if _, err := cluster.Kubectl(t.Context(), "patch", "vm", "dynamic", "-n", ns, "--type=json", "-p", patch); err != nil {
			t.Fatal(err)
		}
		awaitVMCondition(t, ns, "dynamic", virtv1.VirtualMachineRestartRequired)
	})
}

// replaceSecret gives a secret other values.
func replaceSecret(t *testing.T, namespace, name, values string) {
	t.Helper()
	if !strings.HasPrefix(values, "{") {
		values = "{" + values + "}"
	}
	manifest := fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s}\nstringData: %s\n", name, namespace, values)
	dir, err := os.MkdirTemp("", "secret") // kubectl takes a comma, as a test's own directory has from its name, for the end of a path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "secret.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := cluster.Kubectl(t.Context(), "replace", "-f", file); err != nil {
		t.Fatalf("%v %s", err, out)
	}
}

func awaitVMCondition(t *testing.T, namespace, name string, kind virtv1.VirtualMachineConditionType) {
	t.Helper()
	cluster.Eventually(t, soon, "condition "+string(kind), func() error {
		vm := &virtv1.VirtualMachine{}
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, vm); err != nil {
			return err
		}
		for _, c := range vm.Status.Conditions {
			if c.Type == kind && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("conditions %+v", vm.Status.Conditions)
	})
}

// tunnelled runs virtctl until the first bytes that it prints are those of an SSH server.
func tunnelled(ctx context.Context, user *local.Client, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	command := user.Command(ctx, "virtctl", args...)
	in, err := command.StdinPipe() // which stays open: its end would be the tunnel's
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	defer func() {
		cancel()
		_ = command.Wait() // ended by us
	}()
	banner := make([]byte, 4)
	if _, err := io.ReadFull(out, banner); err != nil || string(banner) != "SSH-" {
		return fmt.Errorf("the first bytes are %q, %v", banner, err)
	}
	return nil
}

// SSH.2-C5 and SSH.4 to SSH.6: the ways to a guest.
func TestWaysToSSH(t *testing.T) {
	ns := cluster.Namespace(t)
	user := cluster.NewClient(t)
	key, public := user.Key(t, "id_ways")
	cluster.Apply(t, ns, accessManifest, accessValues("example-vm", "Always", "{noCloud: {}}", public))
	box := lan(t, ns)
	awaitSSH(t, user, ns, key, "cloud-user@vm/example-vm")
	t.Run("SSH.2-C5 without agent credentials the guest keeps its own keys", func(t *testing.T) {
		for _, c := range cluster.Running(t, ns, "example-vm").Status.Conditions {
			if c.Type == virtv1.VirtualMachineInstanceAccessCredentialsSynchronized {
				t.Errorf("condition %+v", c)
			}
		}
	})
	t.Run("SSH.4-K2 the vm/NAME form connects", func(t *testing.T) {
		if out, err := sshTo(t.Context(), user, ns, key, "cloud-user@vm/example-vm", "hostname"); err != nil || out != "example-vm" {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("SSH.4-K1 the bare name form connects with patchbay", func(t *testing.T) {
		args := []string{"ssh", "cloud-user@example-vm", "-i", key}
		for _, option := range user.SSHOptions() {
			if strings.Contains(option, "=") {
				args = append(args, "--option", option)
			}
		}
		out, err := patchbayVM(t, ns, append(args, "--", "hostname")...)
		if err != nil || strings.TrimSpace(out) != "example-vm" {
			t.Errorf("%q, %v", out, err)
		}
	})
	checkThroughServer(t, user, ns, key)
	t.Run("SSH.4-C3 targets by kind, by namespace, and without a kind", func(t *testing.T) {
		for _, target := range []string{"cloud-user@vmi/example-vm", "cloud-user@vm/example-vm/" + ns, "cloud-user@virtualmachine/example-vm"} {
			if out, err := sshTo(t.Context(), user, ns, key, target, "hostname"); err != nil || out != "example-vm" {
				t.Errorf("%s: %q, %v", target, out, err)
			}
		}
		if out, err := sshTo(t.Context(), user, ns, key, "cloud-user@example-vm", "hostname"); err == nil || !strings.Contains(err.Error(), "target must contain type and name separated by '/'") {
			t.Errorf("a bare name: %s", local.Failed(out, err))
		}
	})
	t.Run("SSH.4-C4 flags", func(t *testing.T) {
		args := []string{"-n", ns, "ssh", "vm/example-vm", "-l", "cloud-user", "-p", "22", "-i", key, "-c", "whoami"}
		for _, option := range user.SSHOptions() {
			args = append(args, "-t", option)
		}
		if out, err := user.Run(t.Context(), "", "virtctl", args...); err != nil || strings.TrimSpace(out) != "cloud-user" {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("SSH.4-C2 a key that is not named is not found", func(t *testing.T) {
		args := []string{"-n", ns, "ssh", "cloud-user@vm/example-vm", "-c", "true"}
		for _, option := range user.SSHOptions() {
			args = append(args, "-t", option)
		}
		if out, err := user.Run(t.Context(), "", "virtctl", args...); err == nil {
			t.Errorf("it let somebody in without a key: %s", out)
		}
	})
	t.Run("scp copies both ways", func(t *testing.T) {
		file := filepath.Join(user.Home, "greeting")
		if err := os.WriteFile(file, []byte("hello from outside\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		scp := func(from, to string) error {
			args := []string{"-n", ns, "scp", from, to, "-i", key}
			for _, option := range user.SSHOptions() {
				args = append(args, "-t", option)
			}
			_, err := user.Run(t.Context(), "", "virtctl", args...)
			return err
		}
		if err := scp(file, "cloud-user@vm/example-vm:greeting"); err != nil {
			t.Fatal(err)
		}
		if err := scp("cloud-user@vm/example-vm:greeting", file+".back"); err != nil {
			t.Fatal(err)
		}
		if back, err := os.ReadFile(file + ".back"); err != nil || string(back) != "hello from outside\n" {
			t.Errorf("%q, %v", back, err)
		}
	})
	config := sshConfig(t, user)
	t.Run("SSH.5-K1 ProxyCommand of the ssh config", func(t *testing.T) {
		for name, host := range map[string]string{
			"SSH.5-K2 vm/NAME.NAMESPACE":                 "vm/example-vm." + ns,
			"SSH.5-C2 vm/NAME/NAMESPACE, the newer form": "vm/example-vm/" + ns,
		} {
			t.Run(name, func(t *testing.T) {
				args := append(user.SSHOptions()[2:], "-F", config, "-i", key, "cloud-user@"+host, "hostname")
				if out, err := user.Run(t.Context(), "", "ssh", args...); err != nil || strings.TrimSpace(out) != "example-vm" {
					t.Errorf("%q, %v", out, err)
				}
			})
		}
	})
	t.Run("SSH.5-C3 stdio carries the tunnel's bytes only", func(t *testing.T) {
		if err := tunnelled(t.Context(), user, "port-forward", "--stdio=true", "vm/example-vm/"+ns, "22"); err != nil {
			t.Error(err)
		}
		if out, err := user.Run(t.Context(), "", "virtctl", "port-forward", "--stdio=true", "vm/example-vm/"+ns, "22", "80"); err == nil || !strings.Contains(err.Error(), "only one port supported") {
			t.Errorf("two ports: %s", local.Failed(out, err))
		}
	})
	t.Run("SSH.5-C4 local ports, TCP and UDP", func(t *testing.T) { checkForwarding(t, user, ns) })
	t.Run("SSH.5-C5 roles decide", func(t *testing.T) {
		as := []string{"--as", "system:serviceaccount:" + ns + ":default", "port-forward", "--stdio=true", "vm/example-vm/" + ns, "22"}
		if out, err := user.Run(t.Context(), "", "virtctl", as...); err == nil || !strings.Contains(err.Error(), "forbidden") {
			t.Errorf("a stranger: %s", local.Failed(out, err))
		}
		if _, err := cluster.Kubectl(t.Context(), "create", "rolebinding", "tunnel", "-n", ns, "--clusterrole=kubevirt.io:edit", "--serviceaccount="+ns+":default"); err != nil {
			t.Fatal(err)
		}
		cluster.Eventually(t, soon, "the role", func() error {
			return tunnelled(t.Context(), user, as...)
		})
	})
	t.Run("SSH.6-K1 expose makes a Service", func(t *testing.T) { checkExpose(t, user, ns, box, key) })
	address := checkSecondary(t, user, ns, box, key)
	t.Run("9.1.7-C1 four ways lead to the same guest", func(t *testing.T) { checkFourWays(t, user, ns, box, key, config, address) })
	checkCommands(t, user, ns, key)
	t.Run("SSH.5-C1 a VM that does not run is said so", func(t *testing.T) {
		if _, err := user.Run(t.Context(), "", "virtctl", "stop", "example-vm", "-n", ns); err != nil {
			t.Fatal(err)
		}
		awaitStopped(t, ns, "example-vm")
		out, err := user.Run(t.Context(), "", "virtctl", "port-forward", "--stdio=true", "vm/example-vm/"+ns, "22")
		if err == nil || !strings.Contains(err.Error(), "VMI is not started") {
			t.Error(local.Failed(out, err))
		}
		t.Run("SSH.4-C1 and has to", func(t *testing.T) {
			if out, err := sshTo(t.Context(), user, ns, key, "cloud-user@vm/example-vm", "true"); err == nil || !strings.Contains(err.Error(), "VMI is not started") {
				t.Error(local.Failed(out, err))
			}
		})
	})
}
