package migration

import (
	"bufio"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// line is what is sent at a time.
const (
	lineLength   = 4096
	lineInterval = 50 * time.Millisecond
)

// talk is one TCP connection from the pod to a machine that sends everything back. It is never opened again: a reset ends it.
type talk struct {
	g      guest
	cancel context.CancelFunc
	ended  chan struct{}

	mu   sync.Mutex
	sum  hash.Hash // of what was sent
	sent int
	back int
	last time.Time     // when the last line came back
	gap  time.Duration // the longest time without one
	err  error
}

// startTalk connects and waits for an answer.
func startTalk(t *testing.T, g guest) *talk {
	t.Helper()
	inBox(t, g.ns, fmt.Sprintf("for n in $(seq 300); do ping -c1 -W1 %s >/dev/null && exit 0; sleep 0.2; done; exit 1", g.ip))
	var c *talk
	lab.Eventually(t, limit, g.name+" talks", func() error { // its program starts a little after its network
		if c == nil || c.failed() != nil {
			c = dial(t, g)
		}
		if c.answers() == 0 {
			return errors.Join(errors.New("no answer"), c.failed())
		}
		return nil
	})
	t.Cleanup(c.stop)
	return c
}

func dial(t *testing.T, g guest) *talk {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &talk{g: g, cancel: cancel, ended: make(chan struct{}), sum: md5.New(), last: time.Now()}
	cmd := exec.CommandContext(ctx, filepath.Join(lab.Root(), "bin", "patchbay"), "kubectl", "--name", lab.Name, "--",
		"exec", "-i", "-n", g.ns, "box", "--", "nc", g.ip, "9000")
	in, err := cmd.StdinPipe()
	if err == nil {
		var out io.ReadCloser
		if out, err = cmd.StdoutPipe(); err == nil {
			err = cmd.Start()
			if err == nil {
				go c.read(cmd, out)
				go c.write(ctx, in)
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func lineNo(n int) string {
	head := fmt.Sprintf("%08d ", n)
	return head + strings.Repeat(strconv.Itoa(n%10), lineLength-len(head)-1) + "\n"
}

func (c *talk) write(ctx context.Context, in io.Writer) {
	ticker := time.NewTicker(lineInterval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		c.mu.Lock()
		text := lineNo(c.sent)
		c.sent++
		c.sum.Write([]byte(text))
		c.mu.Unlock()
		if _, err := io.WriteString(in, text); err != nil {
			return // the reader says why
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// read checks that every line comes back once and in order.
func (c *talk) read(cmd *exec.Cmd, out io.Reader) {
	defer close(c.ended)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		c.mu.Lock()
		if want := lineNo(c.back); c.err == nil && lines.Text()+"\n" != want {
			c.err = fmt.Errorf("line %d came back as %q", c.back, lines.Text())
		}
		now := time.Now()
		c.gap, c.last = max(c.gap, now.Sub(c.last)), now
		c.back++
		c.mu.Unlock()
	}
	err := cmd.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = fmt.Errorf("the connection ended after %d lines: %v", c.back, err)
	}
}

func (c *talk) failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *talk) answers() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.back
}

// longest is the longest time without an answer since it was last asked for.
func (c *talk) longest() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	gap := c.gap
	c.gap = 0
	return gap
}

// goesOn waits until what is sent from now on has come back.
func (c *talk) goesOn(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	want := c.sent + 3
	c.mu.Unlock()
	defer func() {
		if t.Failed() && c.answers() < want {
			c.describe(t)
		}
	}()
	lab.Eventually(t, 90*time.Second, "the connection to "+c.g.name+" goes on", func() error {
		if err := c.failed(); err != nil {
			t.Fatalf("the connection to %s: %v", c.g.name, err)
		}
		if n := c.answers(); n < want {
			return fmt.Errorf("%d lines, want %d", n, want)
		}
		return nil
	})
}

// describe logs what is known of a connection that does not go on. A guest that has crashed is another instance by now.
func (c *talk) describe(t *testing.T) {
	c.mu.Lock()
	t.Logf("%s: %d lines sent, %d came back, the last %v ago: %v", c.g.name, c.sent, c.back, time.Since(c.last).Round(time.Second), c.err)
	c.mu.Unlock()
	out, err := lab.InPod(context.Background(), c.g.ns, "box", "ss", "-tnoi", "dst", c.g.ip)
	t.Logf("the pod's end (%v): %s", err, out)
	out, err = lab.InPod(context.Background(), c.g.ns, "box", "ping", "-c", "2", "-W", "2", c.g.ip)
	t.Logf("the guest's answer (%v): %s", err, out)
	lab.Describe(context.Background(), t, c.g.ns)
}

// stop ends the connection from the pod's side.
func (c *talk) stop() {
	c.cancel()
	<-c.ended
}

// settle ends the talk and compares what the guest got with what was sent.
func (c *talk) settle(t *testing.T) {
	t.Helper()
	c.goesOn(t)
	c.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	want := hex.EncodeToString(c.sum.Sum(nil))
	shell := lab.Guest(t, c.g.ns, c.g.name)
	shell.Eventually(lab, limit, fmt.Sprintf("head -c %d /tmp/got | md5sum", c.sent*lineLength), func(got string) bool {
		return strings.HasPrefix(got, want)
	})
}

// pings is a ping from the pod to a machine.
type pings struct{ g guest }

func startPings(t *testing.T, g guest) pings {
	t.Helper()
	inBox(t, g.ns, fmt.Sprintf("ping -i 0.05 %s </dev/null >/tmp/pings-%s 2>&1 & echo $! >/tmp/pinger-%s", g.ip, g.name, g.name))
	return pings{g}
}

var counts = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)

// stop ends the ping and says how many were sent and came back.
func (p pings) stop(t *testing.T) (sent, back int) {
	t.Helper()
	out := inBox(t, p.g.ns, fmt.Sprintf("kill -INT $(cat /tmp/pinger-%s); for n in $(seq 50); do grep transmitted /tmp/pings-%s && exit 0; sleep 0.1; done; exit 1", p.g.name, p.g.name))
	m := counts.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("ping says %q", out)
	}
	sent, _ = strconv.Atoi(m[1])
	back, _ = strconv.Atoi(m[2])
	return sent, back
}
