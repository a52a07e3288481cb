// Package local gives tests a real local cluster: it runs the built programs as a user would and offers short ways to apply
// manifests, wait for objects and run commands in pods, guests and nodes. It must not reach around the product: what a test
// learns, a user could learn.
package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Cluster is a running local cluster.
type Cluster struct {
	Name   string
	Nodes  []string
	Config *rest.Config
	Client client.Client
	root   string // of the repository
	// leaving are the namespaces of tests that are over. Tests run one after the other.
	leaving []string
}

// Up starts the cluster, or heals and takes over one that an earlier run left. Further arguments go to `patchbay up`.
func Up(ctx context.Context, name string, nodes int, args ...string) (*Cluster, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Name: name, root: root}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	args = append([]string{"up", "--name", name, "--nodes", strconv.Itoa(nodes), "--api-port", strconv.Itoa(port)}, args...)
	if out, err := c.Patchbay(ctx, args...); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	for n := range nodes {
		c.Nodes = append(c.Nodes, fmt.Sprintf("node-%d", n+1))
	}
	return c, c.connect(ctx)
}

// At returns a cluster that may be running, to take it down.
func At(name string) (*Cluster, error) {
	root, err := repository()
	return &Cluster{Name: name, root: root}, err
}

// Dir is the cluster's directory.
func (c *Cluster) Dir() string {
	home := os.Getenv("PATCHBAY_HOME")
	if home == "" {
		home = "/var/lib/patchbay"
	}
	return filepath.Join(home, c.Name)
}

func (c *Cluster) connect(ctx context.Context) error {
	kubeconfig, err := c.Patchbay(ctx, "kubeconfig", "--name", c.Name)
	if err != nil {
		return err
	}
	c.Config, err = clientcmd.RESTConfigFromKubeConfig([]byte(kubeconfig))
	if err != nil {
		return fmt.Errorf("kubeconfig of cluster %s: %w", c.Name, err)
	}
	c.Config.QPS, c.Config.Burst = 200, 400
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), virtv1.AddToScheme(scheme), ipamclaimsv1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	c.Client, err = client.New(c.Config, client.Options{Scheme: scheme})
	return err
}

// Down removes the cluster.
func (c *Cluster) Down(ctx context.Context) error {
	out, err := c.Patchbay(ctx, "down", "--name", c.Name)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// Patchbay runs the command line and returns what it printed on standard output.
func (c *Cluster) Patchbay(ctx context.Context, args ...string) (string, error) {
	return run(exec.CommandContext(ctx, filepath.Join(c.root, "bin", "patchbay"), args...))
}

// Kubectl runs kubectl against the cluster and returns what it printed on standard output.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.kubectl(ctx, "", args...)
}

func (c *Cluster) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	stdout, _, err := runBoth(c.kubectlCommand(ctx, stdin, args...))
	return stdout, err
}

func (c *Cluster) kubectlCommand(ctx context.Context, stdin string, args ...string) *exec.Cmd {
	args = append([]string{"kubectl", "--name", c.Name, "--"}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(c.root, "bin", "patchbay"), args...)
	cmd.Stdin = strings.NewReader(stdin)
	return cmd
}

// ApplyVerbose applies a manifest and also returns what kubectl wrote on standard error: warnings of the server.
func (c *Cluster) ApplyVerbose(ctx context.Context, namespace, manifest string) (stdout, stderr string, err error) {
	return runBoth(c.kubectlCommand(ctx, manifest, "apply", "-n", namespace, "-f", "-"))
}

// InNode runs a command in a node's network namespace ("fabric" for the network that joins the nodes).
func (c *Cluster) InNode(ctx context.Context, node string, args ...string) (string, error) {
	return run(exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/pb-" + c.Name + "-" + node}, args...)...))
}

// CommandError is a command that ended badly, with what it wrote on standard error.
type CommandError struct {
	Command string
	Stderr  string
	Err     error
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("%s: %v: %s", e.Command, e.Err, strings.TrimSpace(e.Stderr))
}

func (e *CommandError) Unwrap() error { return e.Err }

func run(cmd *exec.Cmd) (string, error) {
	stdout, _, err := runBoth(cmd)
	return stdout, err
}

func runBoth(cmd *exec.Cmd) (out, errout string, err error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	err = cmd.Run()
	name := filepath.Base(cmd.Args[0]) + " " + strings.Join(cmd.Args[1:], " ")
	slog.Debug("ran", "command", name, "took", time.Since(begin), "error", err)
	if err != nil {
		err = &CommandError{Command: name, Stderr: stderr.String(), Err: err}
	}
	return stdout.String(), stderr.String(), err
}

// Root is the repository's directory.
func (c *Cluster) Root() string { return c.root }

func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no go.mod above the working directory; run the tests inside the repository")
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// Ready reports whether an object's condition of the given type is true.
func Ready(conditions []corev1.PodCondition, kind corev1.PodConditionType) bool {
	for _, c := range conditions {
		if c.Type == kind {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
