package shim

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPod(t *testing.T) {
	for args, want := range map[string]Pod{
		"":                                  {},
		"IgnoreUnknown=1;K8S_POD_NAME=web":  {Name: "web"},
		"K8S_POD_NAMESPACE;K8S_POD_NAME=a=": {Name: "a="},
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=red;K8S_POD_NAME=web;K8S_POD_UID=u1": {"red", "web", "u1"},
	} {
		if got := (Request{Args: args}).Pod(); got != want {
			t.Errorf("%q is for %+v, want %+v", args, got, want)
		}
	}
}

// agent is a node agent that answers one request and keeps what it was asked.
func agent(t *testing.T, answer *Response) (socket string, asked <-chan Request) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	requests := make(chan Request, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var r Request
		if json.NewDecoder(conn).Decode(&r) != nil {
			return
		}
		requests <- r
		if answer != nil {
			_ = json.NewEncoder(conn).Encode(answer)
		}
	}()
	return socket, requests
}

func run(t *testing.T, env map[string]string, stdin string) (int, map[string]any) {
	t.Helper()
	var out strings.Builder
	code := Run(context.Background(), func(key string) string { return env[key] }, strings.NewReader(stdin), &out)
	if out.Len() == 0 {
		return code, nil
	}
	var printed map[string]any
	if err := json.Unmarshal([]byte(out.String()), &printed); err != nil {
		t.Fatalf("printed %q: %v", out.String(), err)
	}
	return code, printed
}

func conf(socket string) string {
	data, _ := json.Marshal(map[string]string{"cniVersion": "1.0.0", "socket": socket})
	return string(data)
}

func TestPassesTheCallOn(t *testing.T) {
	socket, asked := agent(t, &Response{Result: json.RawMessage(`{"cniVersion":"1.0.0"}`)})
	env := map[string]string{"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0", "CNI_ARGS": "A=b"}
	code, printed := run(t, env, conf(socket))
	if code != 0 || printed["cniVersion"] != "1.0.0" {
		t.Errorf("exit %d, printed %v", code, printed)
	}
	want := Request{Command: "ADD", ContainerID: "c", Netns: "/n", IfName: "eth0", Args: "A=b", Config: json.RawMessage(conf(socket))}
	if diff := cmp.Diff(want, <-asked); diff != "" {
		t.Errorf("the agent was asked (-want +got):\n%s", diff)
	}
}

// Asked for addresses by another plugin, it finds its socket where that plugin's configuration says how addresses are given.
func TestAnswersForAddresses(t *testing.T) {
	socket, asked := agent(t, &Response{Result: json.RawMessage(`{"cniVersion":"1.0.0","ips":[]}`)})
	text := `{"cniVersion":"1.0.0","type":"macvlan","ipam":{"type":"whereabouts","socket":"` + socket + `"}}`
	if code, printed := run(t, map[string]string{"CNI_COMMAND": "ADD"}, text); code != 0 || printed["cniVersion"] != "1.0.0" {
		t.Errorf("exit %d, printed %v", code, printed)
	}
	if got := <-asked; string(got.Config) != text {
		t.Errorf("the agent was given %s", got.Config)
	}
}

func TestErrors(t *testing.T) {
	refusing, _ := agent(t, &Response{Error: &Error{Code: 7, Msg: "no", Details: "because"}})
	dying, _ := agent(t, nil)
	absent := filepath.Join(t.TempDir(), "absent")
	cases := map[string]struct {
		command, stdin string
		code           float64
		msg            string
	}{
		"refused":       {"ADD", conf(refusing), 7, "no"},
		"dies":          {"ADD", conf(dying), CodeTryAgainLater, "stopped while it handled the request; kubelet retries"},
		"not running":   {"ADD", conf(absent), CodeTryAgainLater, "the node agent is not running yet; kubelet retries"},
		"DEL too":       {"DEL", conf(absent), CodeTryAgainLater, "kubelet retries"},
		"STATUS":        {"STATUS", conf(absent), CodeNotAvailable, "not running"},
		"not JSON":      {"ADD", "{", CodeDecodingFailure, "not JSON"},
		"no socket":     {"ADD", "{}", CodeInvalidConfig, `no "socket"`},
		"no command":    {"", "{}", CodeInvalidEnvironment, "CNI_COMMAND"},
		"other command": {"MAKE", "{}", CodeInvalidEnvironment, "CNI_COMMAND"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			exit, printed := run(t, map[string]string{"CNI_COMMAND": c.command}, c.stdin)
			msg, _ := printed["msg"].(string)
			if exit != 1 || printed["code"] != c.code || !strings.Contains(msg, c.msg) || printed["cniVersion"] == "" {
				t.Errorf("exit %d, printed %v; want code %v and a message with %q", exit, printed, c.code, c.msg)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	code, printed := run(t, map[string]string{"CNI_COMMAND": "VERSION"}, `{"cniVersion":"0.4.0"}`)
	want := map[string]any{"cniVersion": "0.4.0", "supportedVersions": []any{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}}
	if diff := cmp.Diff(want, printed); code != 0 || diff != "" {
		t.Errorf("exit %d (-want +got):\n%s", code, diff)
	}
}

// An agent that restarts must not make the node NotReady.
func TestStatusStaysGoodForAWhile(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	listener.Close()
	env := map[string]string{"CNI_COMMAND": "STATUS"}
	if code, printed := run(t, env, conf(socket)); code != 0 || printed != nil {
		t.Errorf("just after the agent stopped: exit %d, printed %v", code, printed)
	}
	old := time.Now().Add(-2 * Grace)
	if err := os.Chtimes(socket, old, old); err != nil {
		t.Fatal(err)
	}
	if code, printed := run(t, env, conf(socket)); code != 1 || printed["code"] != float64(CodeNotAvailable) {
		t.Errorf("long after: exit %d, printed %v", code, printed)
	}
}
