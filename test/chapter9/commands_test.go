package chapter9

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/vmctl"
	"patchbay/test/local"
)

// slowly lets the migrations of one test's machines take some seconds, so that somebody can watch.
const slowly = `
apiVersion: migrations.kubevirt.io/v1alpha1
kind: MigrationPolicy
metadata: {name: {{.namespace}}-slowly}
spec:
  bandwidthPerMigration: 32Mi
  selectors: {namespaceSelector: {kubernetes.io/metadata.name: {{.namespace}}}}
`

// checkCommands uses every verb of `patchbay vm` on example-vm, which has a second interface "lan".
func checkCommands(t *testing.T, user *local.Client, ns, key string) {
	must := func(t *testing.T, args ...string) string {
		t.Helper()
		out, err := patchbayVM(t, ns, args...)
		if err != nil {
			t.Fatalf("%s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	status := func(t *testing.T, want virtv1.VirtualMachinePrintableStatus) {
		t.Helper()
		cluster.Eventually(t, boot, "example-vm is "+string(want), func() error {
			if got := readVM(t, ns, "example-vm").Status.PrintableStatus; got != want {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
	}
	t.Run("patchbay completes names of machines and interfaces", func(t *testing.T) {
		for words, want := range map[string]string{
			"stop ":              "example-vm\tRunning\n",
			"ssh cloud-user@":    "cloud-user@example-vm\tRunning\n",
			"unplug example-vm ": "lan\tlan\n",
		} {
			line := append([]string{"__complete", "vm", "--name", cluster.Name, "-n", ns}, strings.Split(words, " ")...)
			if out, err := cluster.Patchbay(t.Context(), line...); err != nil || !strings.Contains(out, want) {
				t.Errorf("%q offers %q, %v", words, out, err)
			}
		}
	})
	t.Run("patchbay vm list", func(t *testing.T) {
		var list []vmctl.Machine
		if err := json.Unmarshal([]byte(must(t, "list", "-o", "json")), &list); err != nil || len(list) != 1 || list[0].Name != "example-vm" || list[0].Node == "" {
			t.Errorf("%+v, %v", list, err)
		}
	})
	t.Run("patchbay vm scp", func(t *testing.T) { copyByCommand(t, user, ns, key) })
	t.Run("patchbay vm console", func(t *testing.T) { consoleByCommand(t, ns) })
	t.Run("patchbay vm vnc", func(t *testing.T) {
		var offer struct{ Port int }
		firstLine(t, ns, func(line string) bool { return json.Unmarshal([]byte(line), &offer) == nil }, "vnc", "example-vm")
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", offer.Port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		banner := make([]byte, 4)
		if _, err := io.ReadFull(conn, banner); err != nil || string(banner) != "RFB " {
			t.Errorf("the screen says %q, %v", banner, err)
		}
	})
	t.Run("patchbay vm port-forward", func(t *testing.T) {
		port := ""
		firstLine(t, ns, func(line string) bool {
			match := regexp.MustCompile(`^tcp port (\d+) leads to example-vm port 80`).FindStringSubmatch(line)
			if match != nil {
				port = match[1]
			}
			return match != nil
		}, "port-forward", "example-vm", "0:80")
		cluster.Eventually(t, soon, "the guest's page", func() error {
			response, err := http.Get("http://127.0.0.1:" + port + "/hostname")
			if err != nil {
				return err
			}
			page, err := io.ReadAll(response.Body)
			if err = errors.Join(err, response.Body.Close()); err == nil && string(page) != "example-vm" {
				err = fmt.Errorf("the page says %q", page)
			}
			return err
		})
	})
	t.Run("patchbay vm expose", func(t *testing.T) {
		if out := must(t, "expose", "example-vm", "--service", "by-patchbay", "--port", "2222", "--target-port", "22"); out != "Service by-patchbay successfully created for vm example-vm\n" {
			t.Errorf("printed %q", out)
		}
		cluster.Eventually(t, soon, "an endpoint", func() error {
			out, err := cluster.Kubectl(t.Context(), "get", "endpointslices", "-n", ns, "-l", "kubernetes.io/service-name=by-patchbay", "-o", "jsonpath={.items[*].endpoints[*].addresses}")
			if err == nil && out == "" {
				err = errors.New("none")
			}
			return err
		})
	})
	t.Run("patchbay vm pause and unpause", func(t *testing.T) {
		must(t, "pause", "example-vm")
		status(t, virtv1.VirtualMachineStatusPaused)
		if out, err := patchbayVM(t, ns, "pause", "example-vm"); err == nil || !strings.Contains(err.Error(), "VMI is already paused") {
			t.Errorf("again: %s", local.Failed(out, err))
		}
		must(t, "unpause", "example-vm")
		status(t, virtv1.VirtualMachineStatusRunning)
	})
	t.Run("patchbay vm unplug", func(t *testing.T) {
		if out := must(t, "unplug", "example-vm", "lan"); !strings.HasPrefix(out, "Interface lan was unplugged from VM example-vm in ") {
			t.Errorf("printed %q", out)
		}
	})
	t.Run("patchbay vm migrate, and a NIC that is plugged meanwhile", func(t *testing.T) { migrateByCommand(t, ns) })
	t.Run("patchbay vm restart, stop and start", func(t *testing.T) {
		before := cluster.Running(t, ns, "example-vm").UID
		if out := must(t, "restart", "example-vm", "--force"); out != "VM example-vm was scheduled to restart\n" {
			t.Errorf("printed %q", out)
		}
		awaitAnother(t, ns, "example-vm", before)
		must(t, "stop", "example-vm", "--grace", "0s")
		awaitStopped(t, ns, "example-vm")
		if out := must(t, "start", "example-vm", "-o", "json"); !strings.Contains(out, `"request": "start"`) {
			t.Errorf("printed %q", out)
		}
		cluster.Running(t, ns, "example-vm")
	})
}

func copyByCommand(t *testing.T, user *local.Client, ns, key string) {
	file := filepath.Join(user.Home, "parcel")
	if err := os.WriteFile(file, []byte("there and back\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	options := []string{"-i", key}
	for _, option := range user.SSHOptions() {
		if strings.Contains(option, "=") {
			options = append(options, "--option", option)
		}
	}
	for _, way := range [][]string{{file, "cloud-user@example-vm:parcel"}, {"cloud-user@vm/example-vm/" + ns + ":parcel", file + ".back"}} {
		if out, err := patchbayVM(t, ns, append(append([]string{"scp"}, options...), way...)...); err != nil {
			t.Fatalf("%s: %v %s", way, err, out)
		}
	}
	if back, err := os.ReadFile(file + ".back"); err != nil || string(back) != "there and back\n" {
		t.Errorf("%q, %v", back, err)
	}
}

// consoleByCommand types at a guest's console until it answers, and leaves with Ctrl+].
func consoleByCommand(t *testing.T, ns string) {
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	command := vmCommand(ctx, ns, "console", "example-vm")
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "\n"); err != nil {
		t.Fatal(err)
	}
	seen := ""
	for buffer := make([]byte, 4096); !strings.Contains(seen, "login:"); {
		n, err := out.Read(buffer)
		if seen += string(buffer[:n]); err != nil {
			t.Fatalf("the console says %q, %v", seen, err)
		}
	}
	if _, err := in.Write([]byte{0x1d}); err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); err != nil {
		t.Errorf("after Ctrl+]: %v", err)
	}
}

func vmCommand(ctx context.Context, ns string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(cluster.Root(), "bin", "patchbay"), append([]string{"vm", "--name", cluster.Name, "-n", ns}, args...)...)
}

// firstLine runs a command until the test ends, and returns when it has printed a line that is good.
func firstLine(t *testing.T, ns string, good func(string) bool, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	command := vmCommand(ctx, ns, args...)
	out, err := command.StdoutPipe()
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = command.Wait() // ended by us
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if good(lines.Text()) {
			return
		}
	}
	t.Fatalf("patchbay vm %s ended: %v", strings.Join(args, " "), lines.Err())
}

// migrateByCommand watches a migration, and plugs a NIC while it is under way: it is plugged afterwards, once.
func migrateByCommand(t *testing.T, ns string) {
	cluster.Apply(t, ns, slowly, map[string]string{"namespace": ns})
	t.Cleanup(func() {
		if out, err := cluster.Kubectl(context.Background(), "delete", "migrationpolicy", ns+"-slowly"); err != nil {
			t.Error(out, err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), boot)
	defer cancel()
	var answer, progress bytes.Buffer
	command := vmCommand(ctx, ns, "migrate", "example-vm", "--output", "json")
	command.Stdout, command.Stderr = &answer, &progress
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	cluster.Eventually(t, soon, "the guest is being sent", func() error {
		if m := cluster.Running(t, ns, "example-vm").Status.MigrationState; m == nil || m.StartTimestamp == nil {
			return fmt.Errorf("state %+v", m)
		}
		return nil
	})
	plugged, err := patchbayVM(t, ns, "plug", "example-vm", "--network", "lan", "--interface", "again", "--timeout", "3m")
	if err != nil {
		t.Errorf("plug: %v", err)
	}
	if err := command.Wait(); err != nil {
		t.Fatalf("%v after %s: %s %s", err, time.Since(began), &answer, &progress)
	}
	var last vmctl.Progress
	if err := json.Unmarshal(answer.Bytes(), &last); err != nil || last.Phase != "Succeeded" || last.Source == last.Target || last.Target == "" {
		t.Errorf("it ended as %s, %v", &answer, err)
	}
	line := regexp.MustCompile(`Running node-\d -> node-\d: [1-9][\d.]* MiB sent, [\d.]+ MiB of [\d.]+ MiB left, [\d.]+ Mbit/s, expected downtime [1-9]\d* ms`)
	if !line.MatchString(progress.String()) {
		t.Errorf("the progress reads\n%s", &progress)
	}
	vmi := awaitNICs(t, ns, "example-vm", "default", "again")
	if vmi.Status.NodeName != last.Target {
		t.Errorf("it runs on %s, want %s", vmi.Status.NodeName, last.Target)
	}
	t.Logf("%s%s", &progress, plugged)
	guest := cluster.Guest(t, ns, "example-vm")
	guest.Eventually(cluster, soon, "ls -d /sys/class/net/eth* | wc -l", contains("2"))
}

// awaitAnother waits until another instance of a machine runs.
func awaitAnother(t *testing.T, ns, name string, before types.UID) {
	t.Helper()
	cluster.Eventually(t, boot, "another instance of "+name, func() error {
		vmi := &virtv1.VirtualMachineInstance{}
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, vmi); err != nil {
			return err
		}
		if vmi.UID == before || !vmi.IsRunning() {
			return fmt.Errorf("it is %s, %s", vmi.UID, vmi.Status.Phase)
		}
		return nil
	})
}

// awaitStopped waits until a machine has no instance.
func awaitStopped(t *testing.T, ns, name string) {
	t.Helper()
	cluster.Eventually(t, boot, "the end of "+name, func() error {
		err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, &virtv1.VirtualMachineInstance{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there: %v", err)
	})
}
