package chapter9

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/test/local"
)

// emptyPorts counts the PCIe root ports of a guest that hold nothing. The guest's log comes over the same console.
func emptyPorts(t *testing.T, guest *local.Guest) int {
	t.Helper()
	out := guest.Run(`n=0; for p in /sys/bus/pci/devices/*; do if [ "$(cat $p/class)" = 0x060400 ] && ! ls -d $p/0000:??:??.? >/dev/null 2>&1; then n=$((n+1)); fi; done; echo "empty ports: $n."`)
	match := regexp.MustCompile(`empty ports: (\d+)\.`).FindStringSubmatch(out)
	if match == nil {
		t.Fatalf("the guest printed %q", out)
	}
	n, _ := strconv.Atoi(match[1])
	return n
}

// plugTogether has several people plug a NIC into app-01 at the same time: none is lost, and none is doubled. It returns all NICs in their order.
func plugTogether(t *testing.T, ns string, nics ...string) (all []string) {
	t.Helper()
	done := make(chan error, len(nics))
	for _, nic := range nics {
		go func() {
			_, err := patchbayVM(t, ns, "plug", "app-01", "--network", "blue-l2", "--interface", nic)
			done <- err
		}()
	}
	for range nics {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	count := map[string]int{}
	for _, i := range readVM(t, ns, "app-01").Spec.Template.Spec.Domain.Devices.Interfaces {
		count[i.Name]++
		all = append(all, i.Name)
	}
	if len(count) != 2+len(nics) {
		t.Errorf("the template has %v", count)
	}
	for name, n := range count {
		if n != 1 {
			t.Errorf("interface %s is there %d times", name, n)
		}
	}
	return all
}

// checkPrerequisites is what 9.6.2 and 9.6.3 ask of a VM and its network, on app-02, which has the plugged interface dyn-nic.
func checkPrerequisites(t *testing.T, ns string) {
	t.Run("9.6.2-C1 the attachment definition is looked for in the VM's namespace", func(t *testing.T) {
		elsewhere := cluster.Namespace(t)
		missing := map[string]string{"name": "late-l2", "namespace": elsewhere, "subnet": "10.100.202.0/24"}
		cluster.Apply(t, elsewhere, layer2Manifest, missing)
		applyPlug(t, ns, "app-02", "dyn-nic", "late=late-l2")
		cluster.Eventually(t, soon, "somebody is told", func() error {
			out, err := cluster.Kubectl(t.Context(), "get", "events,vm,vmi", "-n", ns, "-o", "yaml")
			if err == nil && !strings.Contains(out, "failed to locate network attachment definition "+ns+"/late-l2") {
				err = errors.New("no event or condition names the network")
			}
			return err
		})
		if interfaces := cluster.Running(t, ns, "app-02").Status.Interfaces; len(interfaces) != 2 {
			t.Errorf("interfaces %+v", interfaces)
		}
		missing["namespace"] = ns
		cluster.Apply(t, ns, layer2Manifest, missing)
		awaitNICs(t, ns, "app-02", "defaultnetwork", "dyn-nic", "late")
		applyPlug(t, ns, "app-02", "dyn-nic", "late=late-l2:absent")
		awaitNICs(t, ns, "app-02", "defaultnetwork", "dyn-nic")
	})
	t.Run("9.6.2-C9 with the rollout strategy LiveUpdate", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "get", "kubevirt", "-A", "-o", "jsonpath={.items[*].spec.configuration.vmRolloutStrategy}")
		if err != nil || out != "LiveUpdate" {
			t.Errorf("the strategy is %q, %v", out, err)
		}
		awaitNoVMCondition(t, ns, "app-02", virtv1.VirtualMachineRestartRequired)
	})
	user := cluster.NewClient(t)
	virtctl := func(t *testing.T, verb string) {
		t.Helper()
		if out, err := user.Run(t.Context(), "", "virtctl", verb, "app-02", "-n", ns); err != nil {
			t.Fatal(out, err)
		}
	}
	virtctl(t, "stop")
	awaitStopped(t, ns, "app-02")
	template := func() (names []string) {
		for _, i := range readVM(t, ns, "app-02").Spec.Template.Spec.Domain.Devices.Interfaces {
			names = append(names, i.Name)
		}
		return names
	}
	t.Run("9.6.3-C5 of a VM that does not run nothing is unplugged: the interface leaves the template", func(t *testing.T) {
		halted := strings.Replace(plugManifest, "runStrategy: Always", "runStrategy: Halted", 1)
		cluster.Apply(t, ns, halted, plugValues("app-02", "dyn-nic:absent", "later"))
		cluster.Eventually(t, soon, "the template without the interface", func() error {
			if names := template(); strings.Join(names, " ") != "defaultnetwork later" {
				return fmt.Errorf("it has %v", names)
			}
			return nil
		})
	})
	t.Run("9.6.2-C2 into a VM that does not run nothing is plugged: it gets the interface when it starts", func(t *testing.T) {
		awaitStopped(t, ns, "app-02") // and was not started by the change
		old := `{"spec":{"template":{"metadata":{"annotations":{"kubevirt.io/pci-topology-version":"v1"}}}}}`
		if out, err := cluster.Kubectl(t.Context(), "patch", "vm", "app-02", "-n", ns, "--type=merge", "-p", old); err != nil {
			t.Fatal(out, err)
		}
		virtctl(t, "start")
		guest := cluster.Guest(t, ns, "app-02")
		awaitNICs(t, ns, "app-02", "defaultnetwork", "later")
		guest.Eventually(cluster, soon, "ls -d /sys/class/net/eth* | wc -l", contains("2"))
	})
	t.Run("9.6.3-C7 the interface is a bridged one", func(t *testing.T) {
		if i := cluster.Running(t, ns, "app-02").Spec.Domain.Devices.Interfaces[1]; i.Name != "later" || i.Bridge == nil {
			t.Errorf("interface %+v", i)
		}
		out, err := patchbayVM(t, ns, "unplug", "app-02", "defaultnetwork")
		if err == nil || !strings.Contains(err.Error(), "absent") {
			t.Errorf("the one without bridge: %s", local.Failed(out, err))
		}
	})
	t.Run("9.6.3-C6 also of a VM that an older release made", func(t *testing.T) {
		if out, err := patchbayVM(t, ns, "unplug", "app-02", "later"); err != nil {
			t.Fatal(out, err)
		}
		vmi := awaitNICs(t, ns, "app-02", "defaultnetwork")
		if version := vmi.Annotations[virtv1.PciTopologyVersionAnnotation]; version != "v1" {
			t.Errorf("its topology is %q", version)
		}
	})
}
