package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/guestshell"
)

// poll is how often Eventually looks.
const poll = 100 * time.Millisecond

// Namespace makes a namespace, with labels given as key, value, …. It is deleted, with all that is in it, when the test ends; Gone
// waits for that, so that the next test need not.
func (c *Cluster) Namespace(t *testing.T, labels ...string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-", Labels: map[string]string{}}}
	for pair := range slices.Chunk(labels, 2) {
		ns.Labels[pair[0]] = pair[1]
	}
	if err := c.Client.Create(t.Context(), ns); err != nil {
		t.Fatalf("make a namespace: %v", err)
	}
	t.Cleanup(func() { c.deleteNamespace(t, ns) })
	return ns.Name
}

func (c *Cluster) deleteNamespace(t *testing.T, ns *corev1.Namespace) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if t.Failed() {
		c.Describe(ctx, t, ns.Name)
	}
	if err := c.Client.Delete(ctx, ns); err != nil {
		t.Errorf("delete namespace %s: %v", ns.Name, err)
		return
	}
	c.leaving = append(c.leaving, ns.Name)
}

// Main runs a package's tests on the cluster that up starts, stores it in *into and removes it afterwards; with keep it stays,
// to be looked at. Call it from TestMain:
//
//	func TestMain(m *testing.M) {
//		flag.Parse()
//		os.Exit(local.Main(m, &cluster, false, func(ctx context.Context) (*local.Cluster, error) { return local.Up(ctx, "name", 2) }))
//	}
func Main(m *testing.M, into **Cluster, keep bool, up func(context.Context) (*Cluster, error)) int {
	ctx, cancel := context.WithTimeout(context.Background(), mainLimit)
	defer cancel()
	c, err := up(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the cluster:", err)
		return 1
	}
	*into = c
	code := m.Run()
	if keep {
		return code
	}
	down, cancel := context.WithTimeout(context.Background(), mainLimit)
	defer cancel()
	if err := c.Gone(down); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := c.Down(down); err != nil {
		fmt.Fprintln(os.Stderr, "remove the cluster:", err)
		return 1
	}
	return code
}

// mainLimit is for the start, and for the end, of a cluster on a busy machine.
const mainLimit = 5 * time.Minute

// Gone waits until the namespaces of tests that are over are gone with all that was in them.
func (c *Cluster) Gone(ctx context.Context) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for _, name := range c.leaving {
		for ns := (&corev1.Namespace{}); ; {
			err := c.Client.Get(ctx, client.ObjectKey{Name: name}, ns)
			if apierrors.IsNotFound(err) {
				break
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return fmt.Errorf("namespace %s does not go: %v, %+v", name, err, ns.Status.Conditions)
			}
		}
	}
	return nil
}

// Describe logs what a namespace holds and what happened last in it, for the reader of a failed test.
func (c *Cluster) Describe(ctx context.Context, t *testing.T, namespace string) {
	const columns = "custom-columns=LAST:.lastTimestamp,KIND:.involvedObject.kind,NAME:.involvedObject.name,REASON:.reason,MESSAGE:.message"
	objects, failed := c.Kubectl(ctx, "get", "vm,vmi,vmim,pod,svc", "-n", namespace)
	events, failedToo := c.Kubectl(ctx, "get", "events", "-n", namespace, "--sort-by", ".lastTimestamp", "--no-headers", "-o", columns)
	t.Logf("namespace %s:\n%s%s%v", namespace, objects, newest(events), errors.Join(failed, failedToo))
}

// newest are the last lines of a text, none of them long.
func newest(text string) string {
	const lines, width = 20, 700
	all := strings.SplitAfter(text, "\n")
	var short strings.Builder
	for _, line := range all[max(0, len(all)-lines):] {
		if len(line) > width {
			line = line[:width] + "…\n"
		}
		short.WriteString(line)
	}
	return short.String()
}

// Apply applies manifests; {{.name}} are replaced by values.
func (c *Cluster) Apply(t *testing.T, namespace, manifests string, values map[string]string) string {
	t.Helper()
	out, err := c.TryApply(t.Context(), namespace, manifests, values)
	if err != nil {
		t.Fatalf("apply: %v\n%s", err, manifests)
	}
	return out
}

// TryApply is Apply for manifests that may be refused.
func (c *Cluster) TryApply(ctx context.Context, namespace, manifests string, values map[string]string) (string, error) {
	parsed, err := template.New("manifest").Option("missingkey=error").Parse(manifests)
	if err != nil {
		return "", err
	}
	var text bytes.Buffer
	if err := parsed.Execute(&text, values); err != nil {
		return "", err
	}
	return c.kubectl(ctx, text.String(), "apply", "-n", namespace, "-f", "-")
}

// Eventually fails the test when check does not return nil within limit; it says what the last error was.
func (c *Cluster) Eventually(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if !c.eventually(ctx, t, what, check) {
		t.FailNow()
	}
}

func (c *Cluster) eventually(ctx context.Context, t *testing.T, what string, check func() error) bool {
	t.Helper()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return true
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Errorf("%s: not so in time: %v", what, err)
			return false
		}
	}
}

// Running waits until a VM's instance runs and returns it.
func (c *Cluster) Running(t *testing.T, namespace, name string) *virtv1.VirtualMachineInstance {
	t.Helper()
	vmi := &virtv1.VirtualMachineInstance{}
	c.Eventually(t, 3*time.Minute, "VMI "+name+" runs", func() error {
		if err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, vmi); err != nil {
			return err
		}
		if vmi.Status.Phase != virtv1.Running {
			return fmt.Errorf("phase is %q, conditions %+v", vmi.Status.Phase, vmi.Status.Conditions)
		}
		return nil
	})
	return vmi
}

// PodReady waits until a pod is ready and returns it.
func (c *Cluster) PodReady(t *testing.T, namespace, name string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	c.Eventually(t, 2*time.Minute, "pod "+name+" is ready", func() error {
		if err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, pod); err != nil {
			return err
		}
		if !Ready(pod.Status.Conditions, corev1.PodReady) {
			return fmt.Errorf("phase is %q, conditions %+v", pod.Status.Phase, pod.Status.Conditions)
		}
		return nil
	})
	return pod
}

// LauncherPod returns the pod that runs an instance; those that it has migrated from are over.
func (c *Cluster) LauncherPod(t *testing.T, vmi *virtv1.VirtualMachineInstance) *corev1.Pod {
	t.Helper()
	pods := &corev1.PodList{}
	if err := c.Client.List(t.Context(), pods, client.InNamespace(vmi.Namespace),
		client.MatchingLabels{virtv1.CreatedByLabel: string(vmi.UID)}); err != nil {
		t.Fatal(err)
	}
	pods.Items = slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.Spec.NodeName != vmi.Status.NodeName
	})
	if len(pods.Items) != 1 {
		t.Fatalf("VMI %s has %d launcher pods, want 1", vmi.Name, len(pods.Items))
	}
	return &pods.Items[0]
}

// InPod runs a command in a pod's first container.
func (c *Cluster) InPod(ctx context.Context, namespace, pod string, command ...string) (string, error) {
	return c.Kubectl(ctx, append([]string{"exec", "-n", namespace, pod, "--"}, command...)...)
}

// Guest is a shell in a running instance, over its serial console. It is closed when the test ends.
type Guest struct {
	t     *testing.T
	shell *guestshell.Shell
	name  string
}

// Guest waits for a shell in the instance.
func (c *Cluster) Guest(t *testing.T, namespace, name string) *Guest {
	t.Helper()
	c.Running(t, namespace, name)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	console, err := guestshell.Dial(ctx, c.Config, namespace, name)
	if err != nil {
		t.Fatal(err)
	}
	shell := guestshell.New(console, guestshell.Login{User: "root", Password: "patchbay"})
	t.Cleanup(func() { shell.Close() })
	if err := shell.Ready(ctx); err != nil {
		t.Fatalf("guest %s: %v", name, err)
	}
	return &Guest{t: t, shell: shell, name: name}
}

// Run runs a command in the guest and fails the test when it fails. The output is returned without white space at its ends.
func (g *Guest) Run(command string) string {
	g.t.Helper()
	out, err := g.Try(command)
	if err != nil {
		g.t.Fatalf("guest %s: %v", g.name, err)
	}
	return out
}

// Try runs a command that may fail.
func (g *Guest) Try(command string) (string, error) {
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	out, err := g.shell.Run(ctx, command)
	return strings.TrimSpace(out), err
}

// Eventually repeats a command until its output satisfies check.
func (g *Guest) Eventually(c *Cluster, limit time.Duration, command string, check func(string) bool) string {
	g.t.Helper()
	last := ""
	c.Eventually(g.t, limit, "in guest "+g.name+": "+command, func() error {
		out, err := g.Try(command)
		last = out
		if err == nil && !check(out) {
			err = fmt.Errorf("printed %q", out)
		}
		return err
	})
	return last
}
