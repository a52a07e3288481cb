package qga_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/qemu/qga"
)

// agent is a guest agent that answers each command by a function. It returns the raw bytes of the reply, none for no reply.
type agent struct {
	answer func(command string, args map[string]any) string

	mu   sync.Mutex
	seen []string
}

// connect joins a client to the agent.
func (a *agent) connect(t *testing.T) *qga.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qga")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if conn, err := listener.Accept(); err == nil {
			defer conn.Close()
			a.serve(conn)
		}
	})
	client, err := qga.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(); listener.Close(); serving.Wait() })
	return client
}

// serve parses as qemu-ga does: the delimiter throws away what came before it.
func (a *agent) serve(conn net.Conn) {
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = line[strings.LastIndexByte(line, 0xff)+1:]
		var request struct {
			Execute   string         `json:"execute"`
			Arguments map[string]any `json:"arguments"`
		}
		if json.Unmarshal([]byte(line), &request) != nil {
			fmt.Fprint(conn, `{"error": {"class": "GenericError", "desc": "Invalid JSON syntax"}}`+"\n")
			continue
		}
		a.mu.Lock()
		if request.Execute != "guest-sync-delimited" {
			a.seen = append(a.seen, strings.TrimSpace(line))
		}
		a.mu.Unlock()
		fmt.Fprint(conn, a.reply(request.Execute, request.Arguments))
	}
}

func (a *agent) reply(command string, args map[string]any) string {
	if a.answer != nil {
		switch text := a.answer(command, args); text {
		case silence:
			return ""
		case "":
		default:
			return text
		}
	}
	if command == "guest-sync-delimited" {
		return synced(args)
	}
	return ""
}

func synced(args map[string]any) string { return fmt.Sprintf("\xff{\"return\": %.0f}\n", args["id"]) }

func (a *agent) commands() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.seen...)
}

// silence is the reply of an agent that is not there; an empty one leaves the command to the default.
const silence = "silence"

// table answers commands with fixed values.
func table(replies map[string]string) func(string, map[string]any) string {
	return func(command string, _ map[string]any) string {
		if value, ok := replies[command]; ok {
			return `{"return": ` + value + "}\n"
		}
		return ""
	}
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestQuestions(t *testing.T) {
	a := &agent{answer: table(map[string]string{
		"guest-info":                   `{"version": "7.2.1", "supported_commands": [{"name": "guest-ping", "enabled": true}, {"name": "guest-exec", "enabled": false}]}`,
		"guest-network-get-interfaces": `[{"name": "lo"}, {"name": "eth0", "hardware-address": "02:00:00:00:00:01", "ip-addresses": [{"ip-address": "10.0.2.2", "ip-address-type": "ipv4", "prefix": 24}]}]`,
		"guest-get-osinfo":             `{"id": "debian", "pretty-name": "Debian GNU/Linux 12", "version-id": "12", "kernel-release": "6.1.0"}`,
		"guest-get-host-name":          `{"host-name": "web-01"}`,
		"guest-get-timezone":           `{"zone": "CET", "offset": 3600}`,
		"guest-get-users":              `[{"user": "root", "login-time": 1.5}]`,
		"guest-get-fsinfo":             `[{"name": "vda1", "mountpoint": "/", "type": "ext4", "used-bytes": 5, "total-bytes": 9, "disk": [{"serial": "s", "bus-type": "virtio", "dev": "/dev/vda"}]}]`,
		"guest-fsfreeze-status":        `"thawed"`,
	})}
	c, ctx := a.connect(t), t.Context()
	ask := func(value any, err error) any {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
		return value
	}
	info, err := c.Info(ctx)
	ask(nil, err)
	got := []any{
		info.Version, info.Missing("guest-ping", "guest-exec", "guest-get-time"),
		ask(c.Interfaces(ctx)), ask(c.OS(ctx)), ask(c.Hostname(ctx)), ask(c.Timezone(ctx)), ask(c.Users(ctx)), ask(c.Filesystems(ctx)), ask(c.FreezeStatus(ctx)),
	}
	want := []any{
		"7.2.1", []string{"guest-exec", "guest-get-time"},
		[]qga.Interface{{Name: "lo"}, {Name: "eth0", MAC: "02:00:00:00:00:01", Addresses: []qga.Address{{IP: "10.0.2.2", Type: "ipv4", Prefix: 24}}}},
		qga.OS{ID: "debian", PrettyName: "Debian GNU/Linux 12", VersionID: "12", KernelRelease: "6.1.0"}, "web-01", qga.Timezone{Zone: "CET", Offset: 3600},
		[]qga.User{{Name: "root", LoginTime: 1.5}},
		[]qga.Filesystem{{Name: "vda1", Mountpoint: "/", Type: "ext4", UsedBytes: 5, TotalBytes: 9, Disks: []qga.Disk{{Serial: "s", BusType: "virtio", Device: "/dev/vda"}}}},
		"thawed",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
}

func TestOrders(t *testing.T) {
	reads := 0
	a := &agent{answer: func(command string, args map[string]any) string {
		switch command {
		case "guest-exec":
			return `{"return": {"pid": 7}}` + "\n"
		case "guest-exec-status":
			if reads++; reads == 1 {
				return `{"return": {"exited": false}}` + "\n"
			}
			return `{"return": {"exited": true, "exitcode": 3, "out-data": "b3V0", "err-data": "ZXJy"}}` + "\n"
		case "guest-file-open":
			return `{"return": 1000}` + "\n"
		case "guest-file-write":
			return `{"return": {"count": 4, "eof": false}}` + "\n" // fewer than it was given
		case "guest-file-close", "guest-set-user-password", "guest-ssh-add-authorized-keys", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw":
			return `{"return": {}}` + "\n"
		}
		return ""
	}}
	c := a.connect(t)
	result, err := c.Exec(t.Context(), "/bin/ls", []string{"-l"}, []byte("in"))
	if diff := cmp.Diff(qga.ExecResult{ExitCode: 3, Stdout: []byte("out"), Stderr: []byte("err")}, result); diff != "" || err != nil {
		t.Errorf("exec: %v\n%s", err, diff)
	}
	for _, err := range []error{
		c.WriteFile(t.Context(), "/etc/x", []byte("0123456789")),
		c.SetPassword(t.Context(), "root", "secret"),
		c.SetAuthorizedKeys(t.Context(), "root", nil),
		c.Shutdown(t.Context(), qga.Powerdown),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if err := c.Execute(t.Context(), "guest-ssh-add-authorized-keys", nil, nil); err != nil { // after a command that has no reply
		t.Error(err)
	}
	want := []string{
		`{"execute":"guest-exec","arguments":{"arg":["-l"],"capture-output":true,"input-data":"aW4=","path":"/bin/ls"}}`,
		`{"execute":"guest-exec-status","arguments":{"pid":7}}`, `{"execute":"guest-exec-status","arguments":{"pid":7}}`,
		`{"execute":"guest-file-open","arguments":{"mode":"w","path":"/etc/x"}}`,
		`{"execute":"guest-file-write","arguments":{"buf-b64":"MDEyMzQ1Njc4OQ==","handle":1000}}`,
		`{"execute":"guest-file-write","arguments":{"buf-b64":"NDU2Nzg5","handle":1000}}`,
		`{"execute":"guest-file-write","arguments":{"buf-b64":"ODk=","handle":1000}}`,
		`{"execute":"guest-file-close","arguments":{"handle":1000}}`,
		`{"execute":"guest-set-user-password","arguments":{"crypted":false,"password":"c2VjcmV0","username":"root"}}`,
		`{"execute":"guest-ssh-add-authorized-keys","arguments":{"keys":[],"reset":true,"username":"root"}}`,
		`{"execute":"guest-shutdown","arguments":{"mode":"powerdown"}}`,
		`{"execute":"guest-ssh-add-authorized-keys"}`,
	}
	if diff := cmp.Diff(want, a.commands()); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
}

func TestRefusals(t *testing.T) {
	a := &agent{answer: func(command string, _ map[string]any) string {
		switch command {
		case "guest-get-users":
			return `{"error": {"class": "CommandNotFound", "desc": "The command guest-get-users has been disabled"}}` + "\n"
		case "guest-set-user-password":
			return `{"error": {"class": "GenericError", "desc": "child process has failed"}}` + "\n"
		}
		return ""
	}}
	c := a.connect(t)
	if _, err := c.Users(t.Context()); !qga.NotSupported(err) {
		t.Errorf("a forbidden command: %v, want it to be told apart", err)
	}
	err := c.SetPassword(t.Context(), "nobody", "x")
	if err == nil || qga.NotSupported(err) || !strings.Contains(err.Error(), "refused guest-set-user-password: child process has failed") || strings.Contains(err.Error(), "eA==") {
		t.Errorf("got %v, want the agent's words", err)
	}
}

// TestDeadGuest asks a guest whose agent comes and goes. No reply is ever taken for another's.
func TestDeadGuest(t *testing.T) {
	var alive atomic.Bool
	late := ""
	a := &agent{answer: func(command string, args map[string]any) string {
		switch {
		case !alive.Load() && command == "guest-sync-delimited":
			late += synced(args) // delivered when the agent comes to life
			return silence
		case command == "guest-sync-delimited":
			before := late
			late = ""
			return before + synced(args)
		case command == "guest-get-host-name":
			alive.Store(false)
			late = `{"return": {"host-name": "stale"}}` + "\n"
		case command == "guest-get-timezone":
			return `{"return": {"zone": "UTC", "offset": 0}}` + "\n"
		}
		return ""
	}}
	c := a.connect(t)
	for range 3 {
		if _, err := c.Timezone(soon(t)); !errors.Is(err, qga.ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no agent: %v, want ErrNoAnswer", err)
		}
	}
	alive.Store(true)
	if zone, err := c.Timezone(t.Context()); err != nil || zone.Zone != "UTC" {
		t.Errorf("the agent came: %+v, %v", zone, err)
	}
	if _, err := c.Hostname(soon(t)); !errors.Is(err, qga.ErrNoAnswer) {
		t.Errorf("the agent died in the middle: %v", err)
	}
	alive.Store(true)
	if zone, err := c.Timezone(t.Context()); err != nil || zone.Zone != "UTC" {
		t.Errorf("the agent came back: %+v, %v; want its own answer, not a stale one", zone, err)
	}
}

// TestNoisyChannel has the remains of other conversations before and between replies.
func TestNoisyChannel(t *testing.T) {
	a := &agent{answer: func(command string, args map[string]any) string {
		if command == "guest-sync-delimited" {
			return `half a rep{"return": {"a": 1}}` + "\n\xff{\"return\": 1}\n\xffnot json\n" + synced(args)
		}
		return `{"return": {"host-name": "quiet"}}` + "\n"
	}}
	c := a.connect(t)
	if name, err := c.Hostname(t.Context()); err != nil || name != "quiet" {
		t.Errorf("got %q, %v", name, err)
	}
}

func TestReplyThatNeverEnds(t *testing.T) {
	flood := true
	a := &agent{answer: func(command string, args map[string]any) string {
		if command == "guest-get-host-name" && flood {
			flood = false
			return strings.Repeat("x", qga.MaxReply+10_000) + "\n"
		}
		if command == "guest-get-host-name" {
			return `{"return": {"host-name": "calm"}}` + "\n"
		}
		return ""
	}}
	c := a.connect(t)
	if _, err := c.Hostname(t.Context()); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("got %v, want the reply to be cut off", err)
	}
	if name, err := c.Hostname(t.Context()); err != nil || name != "calm" {
		t.Errorf("after the flood: %q, %v", name, err)
	}
}

func TestCallsTakeTurns(t *testing.T) {
	release := make(chan struct{})
	a := &agent{answer: func(command string, _ map[string]any) string {
		if command == "guest-get-host-name" {
			<-release
			return `{"return": {"host-name": "n"}}` + "\n"
		}
		return ""
	}}
	c := a.connect(t)
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			if name, err := c.Hostname(t.Context()); err != nil || name != "n" {
				t.Errorf("got %q, %v", name, err)
			}
		})
	}
	close(release)
	calls.Wait()
}

func TestClose(t *testing.T) {
	a := &agent{}
	c := a.connect(t)
	failed := make(chan error)
	go func() { _, err := c.Hostname(t.Context()); failed <- err }()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil || errors.Is(err, qga.ErrNoAnswer) {
		t.Errorf("the call under way ended with %v", err)
	}
	if _, err := c.OS(t.Context()); err == nil {
		t.Error("a closed client asked the agent")
	}
}
