package migration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Word is one message between the agents; one of its fields is set. They are said in this order; Failed may take the place of any:
//
//	source -> target  Hello      what the guest looks like; the target starts a QEMU that waits for it
//	target -> source  Prepared   QEMU listens; the streams may begin
//	source -> target  Copied     the disks are equal and stay so; the target may take them
//	source -> target  Go         the guest is yours: it will never run here again
//	target -> source  Taken      it runs here
//
// Go may be said again, on a new connection, by a source that did not hear Taken.
type Word struct {
	Hello    *Hello    `json:"hello,omitempty"`
	Prepared *Prepared `json:"prepared,omitempty"`
	Copied   *Copied   `json:"copied,omitempty"`
	Go       *Go       `json:"go,omitempty"`
	Taken    *Taken    `json:"taken,omitempty"`
	Failed   string    `json:"failed,omitempty"` // a sentence
}

// Hello is what the target cannot know of the running guest.
type Hello struct {
	Migration string `json:"migration"` // UID
	// Ports is the number of PCI root ports, NICs the port of each network card by the name of its interface.
	Ports int            `json:"ports"`
	NICs  map[string]int `json:"nics"`
	// Seed is the cloud-init disk as the guest knows it.
	Seed []byte `json:"seed,omitempty"`
	// Disks are the block nodes whose content follows over the channel Block.
	Disks []string `json:"disks,omitempty"`
	// Bases are the checksums of what disks lie over and never change, by block node, where the source could tell.
	Bases map[string]string `json:"bases,omitempty"`
	// PostCopy says that the guest may have to run on the target before all of its memory is there.
	PostCopy bool `json:"postCopy,omitempty"`
}

// Prepared says that the target's QEMU listens.
type Prepared struct {
	// SameBases are the block nodes whose disks lie over the same content here: only what was written above it has to follow.
	SameBases []string `json:"sameBases,omitempty"`
	// PostCopy says that it can let the guest run before all of its memory is there.
	PostCopy bool `json:"postCopy,omitempty"`
}

// Copied says that nothing more comes over the channel Block.
type Copied struct{}

// Go gives the guest away.
type Go struct {
	Migration string `json:"migration"`
	Running   bool   `json:"running"` // it was not paused by its user
}

// Taken says that the guest runs on the target.
type Taken struct{}

// maxWord bounds a message in bytes; a seed is the largest part.
const maxWord = 16 << 20

// talkLimit is how long a message may take to be sent.
const talkLimit = 10 * time.Second

// Talk is a control connection.
type Talk struct {
	conn net.Conn
	in   *bufio.Reader
	send sync.Mutex
}

// NewTalk takes over a connection of the channel Control.
func NewTalk(conn net.Conn) *Talk { return &Talk{conn: conn, in: bufio.NewReader(conn)} }

// Say sends a word.
func (t *Talk) Say(w Word) error {
	line, err := json.Marshal(w)
	if err != nil {
		return err
	}
	t.send.Lock()
	defer t.send.Unlock()
	_ = t.conn.SetWriteDeadline(time.Now().Add(talkLimit))
	_, err = t.conn.Write(append(line, '\n'))
	return err
}

// Hear waits for the next word. Failed comes as an error.
func (t *Talk) Hear(ctx context.Context) (Word, error) {
	stop := context.AfterFunc(ctx, func() { _ = t.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := t.line()
	if ctx.Err() != nil {
		return Word{}, ctx.Err()
	}
	if err != nil {
		return Word{}, fmt.Errorf("the other node's agent was lost: %w", err)
	}
	var w Word
	if err := json.Unmarshal(line, &w); err != nil {
		return Word{}, fmt.Errorf("the other node's agent said something that is not understood: %w", err)
	}
	if w.Failed != "" {
		return w, &Refusal{w.Failed}
	}
	return w, nil
}

func (t *Talk) line() ([]byte, error) {
	var line []byte
	for {
		part, err := t.in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case err != bufio.ErrBufferFull:
			return nil, err
		case len(line) > maxWord:
			return nil, fmt.Errorf("a message is longer than %d bytes: %w", maxWord, io.ErrShortBuffer)
		}
	}
}

// Close ends the connection.
func (t *Talk) Close() { t.conn.Close() }

// Refusal is the other side's reason.
type Refusal struct{ Reason string }

func (r *Refusal) Error() string { return r.Reason }
