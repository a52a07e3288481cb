package access

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/protocol"
)

const (
	paused    = virtv1.VirtualMachineInstancePaused
	connected = virtv1.VirtualMachineInstanceAgentConnected
	sentence  = `Operation cannot be fulfilled on virtualmachineinstance.kubevirt.io "vm-1": `
)

func TestConsole(t *testing.T) {
	d := open(t)
	d.echo(t, protocol.ConsoleName)
	socket := d.mustDial(t, "console")
	if err := socket.WriteMessage(websocket.TextMessage, []byte("ignored")); err != nil {
		t.Fatal(err)
	}
	if got := say(t, socket, "hello"); got != "HELLO" {
		t.Errorf("got %q", got)
	}
	if err := socket.WriteMessage(websocket.BinaryMessage, []byte("exit")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := socket.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("the end of the stream arrives as %v", err)
	}
}

func TestNewConsoleReplacesOld(t *testing.T) {
	d := open(t)
	d.echo(t, protocol.ConsoleName)
	old := d.mustDial(t, "console")
	say(t, old, "old")
	second := d.mustDial(t, "console")
	if got := say(t, second, "new"); got != "NEW" {
		t.Errorf("got %q", got)
	}
	if _, _, err := old.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the old session ends with %v", err)
	}
}

func TestScreenMayBePreserved(t *testing.T) {
	d := open(t)
	d.echo(t, protocol.VNCName)
	first := d.mustDial(t, "vnc?preserveSession=true")
	say(t, first, "first")
	_, response, err := d.dial(t, "vnc?preserveSession=true")
	if err == nil {
		t.Fatal("two sessions at once")
	}
	if code, message := status(t, response); code != http.StatusServiceUnavailable || message != "Active VNC connection. Request denied." {
		t.Errorf("%d %s", code, message)
	}
	if got := say(t, first, "still"); got != "STILL" {
		t.Errorf("got %q", got)
	}
	d.mustDial(t, "vnc?preserveSession=false")
	if _, _, err := first.ReadMessage(); err == nil {
		t.Error("the first session goes on")
	}
}

func status(t *testing.T, response *http.Response) (int, string) {
	t.Helper()
	if response == nil {
		t.Fatal("no answer")
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var s metav1.Status
	if err := json.Unmarshal(body, &s); err != nil || s.Kind != "Status" {
		t.Fatalf("not a Status: %s", body)
	}
	return response.StatusCode, s.Message
}

func TestPortForwardTCP(t *testing.T) {
	d := open(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	go echoAll(listener)
	for _, path := range []string{"portforward/" + port, "portforward/" + port + "/tcp"} {
		if got := say(t, d.mustDial(t, path), "hello"); got != "HELLO" {
			t.Errorf("%s: got %q", path, got)
		}
	}
	listener.Close()
	_, response, err := d.dial(t, "portforward/"+port+"/tcp")
	if err == nil {
		t.Fatal("connected to a closed port")
	}
	if code, message := status(t, response); code != http.StatusInternalServerError || !strings.Contains(message, "dialing VM: ") {
		t.Errorf("%d %s", code, message)
	}
}

// Each message is one datagram, also one that is larger than a stream's buffer.
func TestPortForwardUDP(t *testing.T) {
	d := open(t)
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, from, err := server.ReadFrom(buffer)
			if err != nil {
				return
			}
			server.WriteTo([]byte(strings.ToUpper(string(buffer[:n]))), from)
		}
	}()
	socket := d.mustDial(t, "portforward/"+strconv.Itoa(server.LocalAddr().(*net.UDPAddr).Port)+"/udp")
	for _, datagram := range []string{"a", strings.Repeat("b", 2*bufferSize)} {
		if got := say(t, socket, datagram); got != strings.ToUpper(datagram) {
			t.Errorf("%d bytes came back as %d", len(datagram), len(got))
		}
	}
}

func TestRefusals(t *testing.T) {
	probe := func(p *virtv1.Probe) func(*virtv1.VirtualMachineInstance) {
		return func(vmi *virtv1.VirtualMachineInstance) { vmi.Spec.LivenessProbe = p }
	}
	phase := func(p virtv1.VirtualMachineInstancePhase) func(*virtv1.VirtualMachineInstance) {
		return func(vmi *virtv1.VirtualMachineInstance) { vmi.Status.Phase = p }
	}
	cases := []struct {
		name, method, path string
		conditions         []virtv1.VirtualMachineInstanceConditionType
		change             func(*virtv1.VirtualMachineInstance)
		code               int
		message            string
	}{
		{"paused twice", "PUT", "pause", []virtv1.VirtualMachineInstanceConditionType{paused}, nil, 409, sentence + "VMI is already paused"},
		{"pause with probe", "PUT", "pause", nil, probe(&virtv1.Probe{}), 403, `virtualmachineinstance.kubevirt.io "vm-1" is forbidden: Pausing VMIs with a non-GuestAgentPing LivenessProbe is not supported`},
		{"pause before start", "PUT", "pause", nil, phase(virtv1.Scheduled), 409, sentence + "VMI is not running"},
		{"unpause", "PUT", "unpause", nil, nil, 409, sentence + "VMI is not paused"},
		{"soft reboot without ears", "PUT", "softreboot", nil, func(vmi *virtv1.VirtualMachineInstance) {
			vmi.Spec.Domain.Features = &virtv1.Features{ACPI: virtv1.FeatureState{Enabled: new(false)}}
		}, 409, sentence + "VMI neither have the agent connected nor the ACPI feature enabled"},
		{"body", "PUT", "pause", nil, nil, 400, "the body is not a JSON object: "},
		{"console of a starting machine", "GET", "console", nil, phase(virtv1.Scheduled), 400, "VMI is not running"},
		{"console of a failed machine", "GET", "console", nil, phase(virtv1.Failed), 409, sentence + "VMI is in failed status"},
		{"no console", "GET", "console", nil, func(vmi *virtv1.VirtualMachineInstance) {
			vmi.Spec.Domain.Devices.AutoattachSerialConsole = new(false)
		}, 400, "No serial consoles are present."},
		{"no screen", "GET", "vnc", nil, func(vmi *virtv1.VirtualMachineInstance) {
			vmi.Spec.Domain.Devices.AutoattachGraphicsDevice = new(false)
		}, 400, "No graphics devices are present."},
		{"forward to a paused machine", "GET", "portforward/22/tcp", []virtv1.VirtualMachineInstanceConditionType{paused}, nil, 409, sentence + "VMI is paused"},
		{"forward without NIC", "GET", "portforward/22", nil, func(vmi *virtv1.VirtualMachineInstance) { vmi.Spec.Domain.Devices.Interfaces = nil }, 400, "no network interfaces are present"},
		{"forward to no port", "GET", "portforward/0", nil, nil, 400, `"0" is not a port; use 1-65535`},
		{"forward SCTP", "GET", "portforward/22/sctp", nil, nil, 400, `protocol "sctp" cannot be forwarded; use tcp or udp`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, c.conditions...)
			if c.change != nil {
				c.change(d.machine.vmi)
			}
			body := ""
			if c.name == "body" {
				body = "nonsense"
			}
			code, text := d.call(t, c.method, machinePath+c.path, body)
			var s metav1.Status
			if err := json.Unmarshal([]byte(text), &s); err != nil {
				t.Fatalf("not a Status: %s", text)
			}
			if code != c.code || !strings.HasPrefix(s.Message, c.message) {
				t.Errorf("%d %q, want %d %q", code, s.Message, c.code, c.message)
			}
			if len(d.machine.did) != 0 {
				t.Errorf("the machine did %v", d.machine.did)
			}
		})
	}
}

func TestNotFound(t *testing.T) {
	d := open(t)
	code, text := d.call(t, "PUT", "/v1/namespaces/default/virtualmachineinstances/vm-2/pause", "")
	if code != http.StatusNotFound || !strings.Contains(text, `virtualmachineinstance.kubevirt.io \"vm-2\" not found`) {
		t.Errorf("%d %s", code, text)
	}
}

func TestChanges(t *testing.T) {
	running, stopped := open(t), open(t, paused)
	for _, c := range []struct {
		door *door
		path string
	}{{running, "pause"}, {running, "reset"}, {running, "softreboot"}, {stopped, "unpause"}} {
		for _, body := range []string{`{"dryRun":["All"]}`, ""} {
			if code, text := c.door.call(t, "PUT", machinePath+c.path, body); code != http.StatusOK {
				t.Errorf("%s: %d %s", c.path, code, text)
			}
		}
	}
	if diff := cmp.Diff([]string{"pause", "reset", "softreboot", "unpause"}, append(running.machine.did, stopped.machine.did...)); diff != "" {
		t.Errorf("each once, and nothing on a dry run (-want +got):\n%s", diff)
	}
}

func TestGuestInformation(t *testing.T) {
	silent, talking := open(t), open(t, connected)
	broken := open(t, connected)
	broken.machine.fail = errors.New("the guest agent does not answer")
	for _, c := range []struct {
		door *door
		path string
		code int
		want string
	}{
		{talking, "guestosinfo", 200, `"hostname":"web-01"`},
		{talking, "userlist", 200, `"items":null`},
		{talking, "filesystemlist", 200, `"items":null`},
		{silent, "guestosinfo", 500, sentence + "VMI does not have guest agent connected"},
		{silent, "userlist", 500, sentence + "VMI does not have guest agent connected"},
		{broken, "filesystemlist", 500, "the guest agent does not answer"},
	} {
		if code, text := c.door.call(t, "GET", machinePath+c.path, ""); code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("%s: %d %s, want %d with %q", c.path, code, text, c.code, c.want)
		}
	}
	talking.machine.vmi.Status.Phase = virtv1.Succeeded
	if code, text := talking.call(t, "GET", machinePath+"userlist", ""); code != 500 || text != sentence+"VMI is not running\n" {
		t.Errorf("%d %q; errors of these are plain text", code, text)
	}
}

func TestOnlyTheControllerMayKnock(t *testing.T) {
	d := open(t)
	stranger := newAuthority(t)
	for name, config := range map[string]*tls.Config{
		"nobody":                 {RootCAs: d.client.RootCAs},
		"another authority":      {RootCAs: d.client.RootCAs, Certificates: stranger.client(t, ControllerName).Certificates},
		"another node's agent":   {RootCAs: d.client.RootCAs, Certificates: agentOf(t, d)},
		"the controller, TLS1.2": {RootCAs: d.client.RootCAs, Certificates: d.client.Certificates, MaxVersion: tls.VersionTLS12},
	} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
		if response, err := client.Get("https://" + d.address + machinePath + "guestosinfo"); err == nil {
			response.Body.Close()
			t.Errorf("%s was let in: %s", name, response.Status)
		}
	}
}

// agentOf is the server's own certificate, which is of the right authority.
func agentOf(t *testing.T, d *door) []tls.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", d.address, d.client)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pair, err := tls.LoadX509KeyPair(d.dir+"/tls.crt", d.dir+"/tls.key")
	if err != nil {
		t.Fatal(err)
	}
	if name := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; name != "patchbay:agent:node-1" {
		t.Fatalf("the server is %s", name)
	}
	return []tls.Certificate{pair}
}

func TestStopEndsStreams(t *testing.T) {
	d := open(t)
	d.echo(t, protocol.ConsoleName)
	socket := d.mustDial(t, "console")
	say(t, socket, "hello")
	d.stop()
	socket.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := socket.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the stream ends with %v", err)
	}
}
