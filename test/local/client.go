package local

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Client is a user's shell outside the cluster: a home directory, a kubeconfig and the published command line client.
type Client struct {
	Home    string
	Virtctl string // path of the program
	env     []string
}

// NewClient makes a home directory that ends with the test. It needs bin/virtctl ("make bin/virtctl").
func (c *Cluster) NewClient(t *testing.T) *Client {
	t.Helper()
	home := t.TempDir()
	kubeconfig, err := c.Patchbay(t.Context(), "kubeconfig", "--name", c.Name)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(home, "kubeconfig")
	if err := os.WriteFile(file, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	virtctl := filepath.Join(c.root, "bin", "virtctl")
	if _, err := os.Stat(virtctl); err != nil {
		t.Fatalf("%v; make it with \"make bin/virtctl\"", err)
	}
	path := filepath.Join(c.root, "bin") + ":" + os.Getenv("PATH")
	return &Client{Home: home, Virtctl: virtctl, env: append(os.Environ(), "HOME="+home, "KUBECONFIG="+file, "PATH="+path, "USER=nobody")}
}

// Run runs a program as the user and returns what it printed on standard output.
func (u *Client) Run(ctx context.Context, stdin, program string, args ...string) (string, error) {
	cmd := u.Command(ctx, program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	return run(cmd)
}

// Command is a program that the user is about to run.
func (u *Client) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	if program == "virtctl" {
		program = u.Virtctl
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Dir = u.env, u.Home
	return cmd
}

// With is the same user with other environment variables, NAME=VALUE.
func (u *Client) With(variables ...string) *Client {
	other := *u
	other.env = append(slices.Clone(u.env), variables...)
	return &other
}

// Key makes a pair of SSH keys and returns the path of the private one and the line of the public one.
func (u *Client) Key(t *testing.T, name string) (path, public string) {
	t.Helper()
	path = filepath.Join(u.Home, name)
	if out, err := u.Run(t.Context(), "", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	text, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return path, strings.TrimSpace(string(text))
}

// SSHOptions are options of ssh that keep a test from asking anybody anything.
func (u *Client) SSHOptions() []string {
	return []string{"-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=" + filepath.Join(u.Home, "known_hosts"), "-o", "BatchMode=yes",
		"-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes"}
}

// Failed says what a command that should have failed printed instead, or what it complained of.
func Failed(out string, err error) string {
	if err == nil {
		return fmt.Sprintf("worked: %s", out)
	}
	return err.Error()
}
