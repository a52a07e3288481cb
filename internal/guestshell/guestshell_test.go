package guestshell

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// fakeGuest is a console: it boots (deaf at first), asks for a login and then runs a real shell that echoes what it is given, as a
// terminal does.
func fakeGuest(t *testing.T, password string) io.ReadWriteCloser {
	t.Helper()
	user, guest := net.Pipe()
	go func() {
		defer guest.Close()
		keys := bufio.NewReader(guest)
		if _, err := keys.ReadString('\n'); err != nil { // typed while the guest boots: lost
			return
		}
		fmt.Fprint(guest, "\x1b[0mDebian tiny ttyS0\r\n\r\ntiny login: ")
		for {
			name, err := keys.ReadString('\n')
			if err != nil {
				return
			}
			if strings.TrimSpace(name) == "root" {
				break
			}
			fmt.Fprint(guest, "tiny login: ")
		}
		fmt.Fprint(guest, "root\r\nPassword: ")
		if secret, err := keys.ReadString('\n'); err != nil || strings.TrimSpace(secret) != password {
			return
		}
		fmt.Fprint(guest, "\r\n~ # ")
		shell := exec.Command("sh")
		shell.Stdout, shell.Stderr = guest, guest
		stdin, err := shell.StdinPipe()
		if err != nil || shell.Start() != nil {
			return
		}
		defer func() { stdin.Close(); shell.Wait() }()
		for {
			line, err := keys.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(guest, "~ # "+strings.TrimSuffix(line, "\n")+"\r\n")
			io.WriteString(stdin, line)
		}
	}()
	return user
}

func TestShell(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	shell := New(fakeGuest(t, "secret"), Login{User: "root", Password: "secret"})
	defer shell.Close()
	if err := shell.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	out, err := shell.Run(ctx, "echo hello; echo world")
	if err != nil || out != "hello\nworld\n" {
		t.Errorf("got %q, %v", out, err)
	}
	out, err = shell.Run(ctx, "echo lost; (exit 7)")
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Status != 7 || out != "lost\n" {
		t.Errorf("want status 7 and the output, have %q, %v", out, err)
	}
}

func TestShellSaysWhatTheConsoleShows(t *testing.T) {
	shell := New(fakeGuest(t, "secret"), Login{User: "root", Password: "secret"})
	defer shell.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := shell.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	if _, err := shell.Run(short, "echo stuck; sleep 30"); err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("want an error that shows the console, have %v", err)
	}
}

func TestReadySaysThatTheConsoleEnded(t *testing.T) {
	shell := New(fakeGuest(t, "secret"), Login{User: "root", Password: "wrong"})
	defer shell.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := shell.Ready(ctx); err == nil || !strings.Contains(err.Error(), "console ended") {
		t.Errorf("want an error that says the console ended, have %v", err)
	}
}
