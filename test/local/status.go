package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"patchbay/internal/cluster"
)

// Status asks without minding whether the cluster is healthy.
func (c *Cluster) Status(t *testing.T) cluster.Status {
	t.Helper()
	out, err := c.Patchbay(t.Context(), "status", "--name", c.Name, "--output", "json")
	var failed *CommandError
	if err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	var s cluster.Status
	if broken := json.Unmarshal([]byte(out), &s); broken != nil {
		t.Fatalf("status prints %q: %v, %v", out, broken, err)
	}
	if s.Healthy != (err == nil) {
		t.Errorf("healthy is %v and the command says %v", s.Healthy, err)
	}
	return s
}

// Component is one of the cluster's, as it is now.
func (c *Cluster) Component(t *testing.T, name string) cluster.Component {
	t.Helper()
	for _, found := range c.Status(t).Components {
		if found.Name == name {
			return found
		}
	}
	t.Fatalf("there is no component %s", name)
	return cluster.Component{}
}

// Replaced waits until another process than that of before does a component's work, and returns it.
func (c *Cluster) Replaced(t *testing.T, limit time.Duration, before cluster.Component) (now cluster.Component) {
	t.Helper()
	c.Eventually(t, limit, before.Name+" runs again", func() error {
		if now = c.Component(t, before.Name); !now.Healthy || now.PID == before.PID {
			return fmt.Errorf("it is %+v", now)
		}
		return nil
	})
	return now
}

// Kill has a component's process end at once and waits for the next one.
func (c *Cluster) Kill(t *testing.T, limit time.Duration, name string) {
	t.Helper()
	before := c.Component(t, name)
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatalf("kill %s, process %d: %v", name, before.PID, err)
	}
	c.Replaced(t, limit, before)
}
