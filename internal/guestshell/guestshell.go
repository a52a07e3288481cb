// Package guestshell runs commands in a guest over its serial console, as a person at the console would: it logs in when the
// console asks for it, types the command and reads what comes back. It needs no network and no agent in the guest. It
// must not know how the console is reached: any byte stream will do (Dial in this package reaches one through the API).
package guestshell

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Login is what to answer when the console asks who is there.
type Login struct {
	User     string
	Password string
}

// Shell is a shell at the other end of a console. Its methods must not be called concurrently.
type Shell struct {
	console io.ReadWriteCloser
	login   Login
	chunks  chan []byte
	done    chan struct{} // closed when the console ended
	err     error         // why it ended; read after done
	text    strings.Builder
}

// New takes over a console; Close ends it.
func New(console io.ReadWriteCloser, login Login) *Shell {
	s := &Shell{console: console, login: login, chunks: make(chan []byte, 64), done: make(chan struct{})}
	go s.read()
	return s
}

// Close ends the console and waits for its reader.
func (s *Shell) Close() error {
	err := s.console.Close()
	for range s.chunks { // until the reader has gone
	}
	return err
}

func (s *Shell) read() {
	defer close(s.chunks)
	defer close(s.done)
	buffer := make([]byte, 4096)
	for {
		n, err := s.console.Read(buffer)
		if n > 0 {
			s.chunks <- append([]byte(nil), buffer[:n]...)
		}
		if err != nil {
			s.err = err
			return
		}
	}
}

// ExitError is a command's exit status other than 0.
type ExitError struct {
	Command string
	Status  int
	Output  string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("in the guest, %q ended with status %d: %s", e.Command, e.Status, strings.TrimSpace(e.Output))
}

// nudge is how often an unanswered console is asked again: a guest that boots drops what was typed before its getty ran.
const nudge = 2 * time.Second

var (
	prompt   = regexp.MustCompile(`[#$] ?$`)
	askUser  = regexp.MustCompile(`login: ?$`)
	askPass  = regexp.MustCompile(`(?i)password: ?$`)
	escape   = regexp.MustCompile("\x1b\\[[0-9;?]*[a-zA-Z]")
	sentMark = `echo "pb-""%[1]s-begin"; { %[2]s
}; echo "pb-""%[1]s-end-$?"` + "\n"
)

// Ready waits until a shell prompt stands on the console, logging in on the way.
func (s *Shell) Ready(ctx context.Context) error {
	if err := s.send("\n"); err != nil {
		return err
	}
	for {
		state, err := s.expect(ctx, nudge, prompt, askUser, askPass)
		switch {
		case errors.Is(err, errQuiet):
			err = s.send("\n")
		case err != nil:
		case state == 0:
			return nil
		case state == 1:
			err = s.send(s.login.User + "\n")
		case state == 2:
			err = s.send(s.login.Password + "\n")
		}
		if err != nil {
			return fmt.Errorf("wait for a shell on the console: %w", err)
		}
	}
}

// Run types one command (it may span lines) and returns what it printed, without carriage returns. A status other than 0 is
// an *ExitError.
func (s *Shell) Run(ctx context.Context, command string) (string, error) {
	nonce := make([]byte, 6)
	if _, err := rand.Read(nonce); err != nil {
		return "", err
	}
	mark := hex.EncodeToString(nonce)
	s.text.Reset()
	if err := s.send(fmt.Sprintf(sentMark, mark, command)); err != nil {
		return "", err
	}
	end := regexp.MustCompile(`(?s)pb-` + mark + `-begin\n(.*?)pb-` + mark + `-end-(\d+)`)
	if _, err := s.expect(ctx, 0, end); err != nil {
		return "", fmt.Errorf("run %q in the guest: %w; the console shows: %s", command, err, tail(s.plain(), 400))
	}
	match := end.FindStringSubmatch(s.plain())
	status, err := strconv.Atoi(match[2])
	if err != nil {
		return "", err
	}
	if status != 0 {
		return match[1], &ExitError{Command: command, Status: status, Output: match[1]}
	}
	return match[1], nil
}

var errQuiet = errors.New("the console is silent")

// expect reads until the text since the last expectation matches one of the patterns, and returns its index. With a quiet
// time it gives up with errQuiet when nothing arrives for that long.
func (s *Shell) expect(ctx context.Context, quiet time.Duration, patterns ...*regexp.Regexp) (int, error) {
	var silence <-chan time.Time
	if quiet > 0 {
		timer := time.NewTimer(quiet)
		defer timer.Stop()
		silence = timer.C
	}
	for {
		plain := s.plain()
		for i, pattern := range patterns {
			if pattern.MatchString(plain) {
				if quiet > 0 {
					s.text.Reset()
				}
				return i, nil
			}
		}
		select {
		case chunk, open := <-s.chunks:
			if !open {
				<-s.done
				return 0, fmt.Errorf("the console ended: %w", s.err)
			}
			s.text.Write(chunk)
		case <-silence:
			return 0, errQuiet
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// plain is the text since the last expectation, without carriage returns and terminal escapes.
func (s *Shell) plain() string {
	return escape.ReplaceAllString(strings.ReplaceAll(s.text.String(), "\r", ""), "")
}

func (s *Shell) send(text string) error {
	if _, err := io.WriteString(s.console, text); err != nil {
		return fmt.Errorf("write to the console: %w", err)
	}
	return nil
}

func tail(text string, most int) string {
	if len(text) > most {
		return "…" + text[len(text)-most:]
	}
	return text
}
