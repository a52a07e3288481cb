// Package qga talks to the QEMU guest agent inside a guest, through the unix socket that QEMU makes of its virtio-serial port.
//
// Nothing in a guest can be trusted to answer: the agent may be absent, dead or killed in the middle of a reply, and the channel
// may still hold bytes of an earlier conversation. Therefore every call carries a deadline, the conversation is synchronised before
// the first command and again after anything that went wrong, and replies have a size limit.
package qga

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
)

// ErrNoAnswer says that the guest agent did not answer in time: it does not run, or hangs.
var ErrNoAnswer = errors.New("the guest agent does not answer")

// MaxReply is how many bytes of a reply are read. A guest that sends more is cut off.
const MaxReply = 16 << 20

// delimiter is the byte that guest-sync-delimited puts before its reply; no UTF-8 text contains it.
const delimiter = 0xff

// Client is a connection to a guest agent. Calls may come from several goroutines; they are carried out one after another.
type Client struct {
	conn net.Conn
	in   *bufio.Reader

	turn   chan struct{} // holds a token while nobody uses the channel
	synced bool

	closed    chan struct{}
	closeOnce sync.Once
}

// Error is the guest agent's refusal of a command.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"` // CommandNotFound when the agent is too old or its policy forbids the command
	Desc    string `json:"desc"`
}

func (e *Error) Error() string {
	return fmt.Sprintf("the guest agent refused %s: %s", e.Command, e.Desc)
}

// Dial connects to the guest agent's socket. It works without an agent in the guest; the first call then ends with ErrNoAnswer.
// QEMU serves one client at a time.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to the guest agent's channel: %w", err)
	}
	return New(conn), nil
}

// New takes over a connection to a guest agent's channel.
func New(conn net.Conn) *Client {
	c := &Client{conn: conn, in: bufio.NewReader(conn), turn: make(chan struct{}, 1), closed: make(chan struct{})}
	c.turn <- struct{}{}
	return c
}

// Close ends the connection and the call that is under way.
func (c *Client) Close() error {
	err := net.ErrClosed
	c.closeOnce.Do(func() {
		close(c.closed)
		err = c.conn.Close()
	})
	return err
}

// Execute carries out one command and decodes its return value into result, unless that is nil. The command may have been
// carried out when it ends with ErrNoAnswer.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	return c.talk(ctx, command, func() error {
		if err := c.send(command, args); err != nil {
			return err
		}
		line, err := c.receive()
		if err != nil {
			return err
		}
		return decode(command, line, result)
	})
}

// tell sends a command that has no reply when it works (guest-shutdown). The channel is synchronised before and after: without an
// agent the command would wait in the channel for the next one.
func (c *Client) tell(ctx context.Context, command string, args any) error {
	return c.talk(ctx, command, func() error {
		c.synced = false
		if err := c.sync(); err != nil {
			return err
		}
		c.synced = false
		return c.send(command, args)
	})
}

// talk runs one conversation on the channel, which it synchronises when the last one did not end well.
func (c *Client) talk(ctx context.Context, command string, converse func() error) error {
	select {
	case <-c.turn:
	case <-c.closed:
		return fmt.Errorf("guest agent %s: %w", command, net.ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("guest agent %s: %w: another command is under way: %w", command, ErrNoAnswer, ctx.Err())
	}
	defer func() { c.turn <- struct{}{} }()
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			c.synced = false
		}
		_ = c.conn.SetDeadline(time.Time{})
	}()
	err := c.sync()
	if err == nil {
		err = converse()
	}
	return c.explain(ctx, command, err)
}

// explain tells a refusal, which leaves the channel in order, from everything else, which does not.
func (c *Client) explain(ctx context.Context, command string, err error) error {
	var refused *Error
	switch {
	case err == nil || errors.As(err, &refused):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("%w: %w", ErrNoAnswer, ctx.Err())
	}
	c.synced = false
	return fmt.Errorf("guest agent %s: %w", command, err)
}

// sync throws away what is left of earlier conversations: it sends a random number and reads up to the reply that carries it.
func (c *Client) sync() error {
	if c.synced {
		return nil
	}
	id := rand.Int64N(1 << 31)
	// A lone delimiter makes the agent's parser drop half a command that an earlier client may have left.
	if _, err := c.conn.Write([]byte{delimiter}); err != nil {
		return err
	}
	if err := c.send("guest-sync-delimited", map[string]int64{"id": id}); err != nil {
		return err
	}
	for {
		if err := c.skipToDelimiter(); err != nil {
			return err
		}
		line, err := c.receive()
		if err != nil {
			return err
		}
		var got int64
		if decode("guest-sync-delimited", line, &got) == nil && got == id {
			c.synced = true
			return nil
		}
	}
}

func (c *Client) skipToDelimiter() error {
	for {
		b, err := c.in.ReadByte()
		if err != nil {
			return err
		}
		if b == delimiter {
			return nil
		}
	}
}

func (c *Client) send(command string, args any) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return err
	}
	_, err = c.conn.Write(append(line, '\n'))
	return err
}

// receive reads one line of at most MaxReply bytes.
func (c *Client) receive() ([]byte, error) {
	var line []byte
	for {
		part, err := c.in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > MaxReply:
			return nil, fmt.Errorf("the reply is longer than %d bytes", MaxReply)
		case errors.Is(err, bufio.ErrBufferFull):
		case err != nil:
			return nil, err
		default:
			return bytes.TrimSpace(line), nil
		}
	}
}

func decode(command string, line []byte, result any) error {
	var reply struct {
		Return json.RawMessage `json:"return"`
		Error  *Error          `json:"error"`
	}
	if err := json.Unmarshal(line, &reply); err != nil {
		return fmt.Errorf("the reply is not JSON: %w", err)
	}
	if reply.Error != nil {
		reply.Error.Command = command
		return reply.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Return, result); err != nil {
		return fmt.Errorf("the reply has an unexpected shape: %w", err)
	}
	return nil
}
