package access

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	virtv1 "kubevirt.io/api/core/v1"
)

// fakeMachine is a machine whose sockets are real unix sockets of the test.
type fakeMachine struct {
	vmi  *virtv1.VirtualMachineInstance
	dir  string
	did  []string
	fail error
}

func (m *fakeMachine) Machine(namespace, name string) (Machine, error) {
	if namespace != m.vmi.Namespace || name != m.vmi.Name {
		return nil, apierrors.NewNotFound(resource, name)
	}
	return m, nil
}

func (m *fakeMachine) VMI() *virtv1.VirtualMachineInstance { return m.vmi }

func (m *fakeMachine) DialSocket(ctx context.Context, name string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(m.dir, name))
}

func (m *fakeMachine) DialGuest(ctx context.Context, network string, port uint16) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", port))
}

func (m *fakeMachine) do(what string) error {
	m.did = append(m.did, what)
	return m.fail
}

func (m *fakeMachine) Pause(context.Context) error      { return m.do("pause") }
func (m *fakeMachine) Unpause(context.Context) error    { return m.do("unpause") }
func (m *fakeMachine) Reset(context.Context) error      { return m.do("reset") }
func (m *fakeMachine) SoftReboot(context.Context) error { return m.do("softreboot") }

func (m *fakeMachine) GuestInfo(context.Context) (virtv1.VirtualMachineInstanceGuestAgentInfo, error) {
	return virtv1.VirtualMachineInstanceGuestAgentInfo{Hostname: "web-01"}, m.fail
}

func (m *fakeMachine) Users(context.Context) (virtv1.VirtualMachineInstanceGuestOSUserList, error) {
	return virtv1.VirtualMachineInstanceGuestOSUserList{}, m.fail
}

func (m *fakeMachine) Freeze(_ context.Context, limit time.Duration) error {
	return m.do("freeze for " + limit.String())
}

func (m *fakeMachine) Unfreeze(context.Context) error { return m.do("unfreeze") }

func (m *fakeMachine) Screenshot(context.Context) ([]byte, error) { return []byte("\x89PNG"), nil }

func (m *fakeMachine) Addresses() ([]AddressSources, error) {
	return []AddressSources{{Interface: "blue", Network: []string{"10.0.0.1"}, Observed: []string{"10.0.0.9"}, Disagree: true}}, nil
}

func (m *fakeMachine) MigrationProgress(context.Context) (MigrationProgress, error) {
	return MigrationProgress{State: "active", TotalBytes: 2, RemainingBytes: 1}, nil
}

func (m *fakeMachine) Filesystems(context.Context) (virtv1.VirtualMachineInstanceFileSystemList, error) {
	return virtv1.VirtualMachineInstanceFileSystemList{}, m.fail
}

// door is a running server with a client that may use it.
type door struct {
	machine *fakeMachine
	client  *tls.Config
	address string
	dir     string // certificates
	stop    func() // ends the server and waits for it
}

func open(t *testing.T, conditions ...virtv1.VirtualMachineInstanceConditionType) *door {
	t.Helper()
	vmi := &virtv1.VirtualMachineInstance{}
	vmi.Namespace, vmi.Name, vmi.UID = "default", "vm-1", "5d9c"
	vmi.Status.Phase = virtv1.Running
	vmi.Spec.Domain.Devices.Interfaces = []virtv1.Interface{{Name: "default"}}
	for _, c := range conditions {
		vmi.Status.Conditions = append(vmi.Status.Conditions, virtv1.VirtualMachineInstanceCondition{Type: c, Status: corev1.ConditionTrue})
	}
	d := &door{machine: &fakeMachine{vmi: vmi, dir: t.TempDir()}}
	authority := newAuthority(t)
	d.dir = t.TempDir()
	authority.issue(t, d.dir, "patchbay:agent:node-1")
	d.client = authority.client(t, ControllerName)

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(Config{Machines: d.machine, TLSDir: d.dir}).Serve(ctx, listener) }()
	d.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(d.stop)
	return d
}

// echo serves a unix socket of the machine: what comes in goes back, as one upper-case copy.
func (d *door) echo(t *testing.T, name string) {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(d.machine.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go echoAll(listener)
}

func echoAll(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			buffer := make([]byte, 1<<16)
			for {
				n, err := conn.Read(buffer)
				if err != nil {
					return
				}
				if strings.TrimSpace(string(buffer[:n])) == "exit" {
					return
				}
				if _, err := conn.Write([]byte(strings.ToUpper(string(buffer[:n])))); err != nil {
					return
				}
			}
		}()
	}
}

const machinePath = "/v1/namespaces/default/virtualmachineinstances/vm-1/"

// call makes a plain request and returns the answer.
func (d *door) call(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: d.client}}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), method, "https://"+d.address+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// dial opens a websocket as the controller does.
func (d *door) dial(t *testing.T, path string) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	dialer := websocket.Dialer{TLSClientConfig: d.client, Subprotocols: []string{Subprotocol}}
	socket, response, err := dialer.DialContext(t.Context(), "wss://"+d.address+machinePath+path, nil)
	if err == nil {
		t.Cleanup(func() { socket.Close() })
		socket.SetReadDeadline(time.Now().Add(10 * time.Second))
	}
	return socket, response, err
}

func (d *door) mustDial(t *testing.T, path string) *websocket.Conn {
	t.Helper()
	socket, response, err := d.dial(t, path)
	if err != nil {
		if response != nil {
			body, _ := io.ReadAll(response.Body)
			t.Fatalf("%s: %v: %s", path, err, body)
		}
		t.Fatalf("%s: %v", path, err)
	}
	if socket.Subprotocol() != Subprotocol {
		t.Errorf("subprotocol %q", socket.Subprotocol())
	}
	return socket
}

// say sends and returns the answer as a message.
func say(t *testing.T, socket *websocket.Conn, text string) string {
	t.Helper()
	if err := socket.WriteMessage(websocket.BinaryMessage, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return hear(t, socket)
}

func hear(t *testing.T, socket *websocket.Conn) string {
	t.Helper()
	kind, message, err := socket.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	if kind != websocket.BinaryMessage {
		t.Errorf("message of kind %d", kind)
	}
	return string(message)
}

type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "agents"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = a.sign(t, template, template, &key.PublicKey)
	return a
}

func (a *authority) sign(t *testing.T, template, parent *x509.Certificate, public *ecdsa.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issue writes a pair and the authority into dir.
func (a *authority) issue(t *testing.T, dir, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &key.PublicKey)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: cert.Raw},
		"tls.key": {Type: "EC PRIVATE KEY", Bytes: der},
		"ca.crt":  {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// client is how a holder of a certificate connects.
func (a *authority) client(t *testing.T, name string) *tls.Config {
	t.Helper()
	dir := t.TempDir()
	a.issue(t, dir, name)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}
}
