package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// ErrClosed is the end of a monitor that Close ended.
var ErrClosed = errors.New("the QEMU monitor was closed")

// Client is a connection to QEMU's monitor.
type Client struct {
	conn *net.UnixConn
	done chan struct{}

	writing sync.Mutex // one command on the wire at a time, so that a descriptor travels with its own command

	mu      sync.Mutex
	next    int
	pending map[string]chan message
	feed    Feed
	err     error
}

// message is any line that QEMU sends.
type message struct {
	Greeting  json.RawMessage `json:"QMP"`
	ID        string          `json:"id"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
}

// Dial connects to a monitor socket. QEMU serves one client at a time: while another holds the monitor, Dial waits.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to QEMU's monitor: %w", err)
	}
	return New(ctx, conn.(*net.UnixConn))
}

// New takes over a connection to a monitor and returns when QEMU accepts commands. It closes the connection when it fails.
func New(ctx context.Context, conn *net.UnixConn) (*Client, error) {
	c := &Client{conn: conn, done: make(chan struct{}), pending: map[string]chan message{}}
	greeted := make(chan struct{})
	go c.read(sync.OnceFunc(func() { close(greeted) }))
	select {
	case <-greeted:
	case <-c.done:
		return nil, fmt.Errorf("QEMU's monitor did not greet: %w", c.Err())
	case <-ctx.Done():
		c.Close()
		return nil, fmt.Errorf("QEMU's monitor did not greet: %w", ctx.Err())
	}
	if err := c.Execute(ctx, Command{Name: "qmp_capabilities"}, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Execute implements Monitor.
func (c *Client) Execute(ctx context.Context, cmd Command, result any) error {
	id, answer, err := c.register()
	if err != nil {
		return fmt.Errorf("QEMU %s: %w", cmd.Name, err)
	}
	defer c.forget(id)
	if err := c.send(ctx, id, cmd); err != nil {
		return fmt.Errorf("send QEMU %s: %w", cmd.Name, err)
	}
	select {
	case m := <-answer:
		return decode(cmd.Name, m, result)
	case <-c.done:
		return fmt.Errorf("QEMU %s: %w", cmd.Name, c.Err())
	case <-ctx.Done():
		return fmt.Errorf("QEMU did not answer %s: %w", cmd.Name, ctx.Err())
	}
}

func decode(name string, m message, result any) error {
	if m.Error != nil {
		m.Error.Command = name
		return m.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("QEMU %s returned something unexpected: %w", name, err)
	}
	return nil
}

func (c *Client) register() (string, <-chan message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return "", nil, c.err
	}
	c.next++
	id, answer := strconv.Itoa(c.next), make(chan message, 1)
	c.pending[id] = answer
	return id, answer, nil
}

func (c *Client) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

func (c *Client) send(ctx context.Context, id string, cmd Command) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{cmd.Name, cmd.Args, id})
	if err != nil {
		return err
	}
	line = append(line, '\n')
	c.writing.Lock()
	defer c.writing.Unlock()
	// A monitor whose buffer is full must not hold the caller longer than it asked for. Half a line on the wire cannot be taken
	// back, so the connection ends with it.
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
	})
	n, err := c.write(line, cmd.File)
	if !stop() {
		<-interrupted // else it would cut the next command
		_ = c.conn.SetWriteDeadline(time.Time{})
	}
	if err != nil && n > 0 {
		c.shut(fmt.Errorf("a command was cut short: %w", err))
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// write sends the line, with the descriptor on its first byte.
func (c *Client) write(line []byte, file *os.File) (int, error) {
	sent := 0
	if file != nil {
		n, err := c.writeWith(line, file)
		if err != nil {
			return n, err
		}
		sent = n
	}
	if sent == len(line) {
		return sent, nil
	}
	n, err := c.conn.Write(line[sent:])
	return sent + n, err
}

// writeWith borrows the descriptor through SyscallConn: File.Fd would make the shared open file blocking.
func (c *Client) writeWith(line []byte, file *os.File) (n int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		n, _, err = c.conn.WriteMsgUnix(line, syscall.UnixRights(int(fd)), nil)
	})
	return n, errors.Join(controlErr, err)
}

// read delivers what QEMU sends until the connection ends.
func (c *Client) read(greeted func()) {
	in := bufio.NewReader(c.conn)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			c.shut(fmt.Errorf("the connection to QEMU ended: %w", err))
			return
		}
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			c.shut(fmt.Errorf("QEMU's monitor sent a line that is not QMP: %w", err))
			return
		}
		switch {
		case m.Greeting != nil:
			greeted()
		case m.Event != "":
			c.feed.Publish(Event{Name: m.Event, Data: m.Data, Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)})
		default:
			c.answer(m)
		}
	}
}

func (c *Client) answer(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if answer, ok := c.pending[m.ID]; ok {
		delete(c.pending, m.ID)
		answer <- m
	}
}

// Subscribe implements Monitor.
func (c *Client) Subscribe() *Subscription { return c.feed.Subscribe() }

// Done implements Monitor.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err implements Monitor.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close implements Monitor.
func (c *Client) Close() error {
	c.shut(ErrClosed)
	return nil
}

func (c *Client) shut(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	c.conn.Close()
	close(c.done)
	c.feed.End(err)
}
