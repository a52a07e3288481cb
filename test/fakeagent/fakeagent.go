// Package fakeagent is a test fixture: a node agent on mutual TLS that answers requests with what it was asked, or with what the
// test wants, and websockets with an echo. A forwarded port closes after the first message, as a server that has answered does.
package fakeagent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"patchbay/test/apiserver"
)

// Address is what the node's object says, and what the agent's certificate is for.
const (
	Address = "192.0.2.11"
	port    = "8186"
)

// Agent is a running agent.
type Agent struct {
	// Seen receives every request.
	Seen chan *http.Request
	// Answers maps the last element of a path to the body of the answer.
	Answers map[string]string

	server    *httptest.Server
	authority *apiserver.Authority
}

// Start runs an agent until the test ends.
func Start(t *testing.T) *Agent {
	t.Helper()
	authority, err := apiserver.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{authority: authority, Seen: make(chan *http.Request, 64), Answers: map[string]string{}}
	a.server = httptest.NewUnstartedServer(http.HandlerFunc(a.serve))
	a.server.TLS = &tls.Config{
		Certificates: []tls.Certificate{a.issue(t, "patchbay:agent:node-1", Address)},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: a.pool(), NextProtos: []string{"http/1.1"},
	}
	a.server.StartTLS()
	t.Cleanup(a.server.Close)
	return a
}

// Stop makes the agent go away.
func (a *Agent) Stop() { a.server.Close() }

// ClientTLS is the configuration of a client whose certificate carries a name.
func (a *Agent) ClientTLS(t *testing.T, name string) *tls.Config {
	t.Helper()
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: a.pool(), Certificates: []tls.Certificate{a.issue(t, name)}}
}

// Dial connects whoever asks for the node's address.
func (a *Agent) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if address != net.JoinHostPort(Address, port) {
		return nil, &net.AddrError{Err: "no agent listens there", Addr: address}
	}
	return (&net.Dialer{}).DialContext(ctx, network, a.server.Listener.Addr().String())
}

func (a *Agent) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.authority.PEM)
	return pool
}

func (a *Agent) issue(t *testing.T, name string, addresses ...string) tls.Certificate {
	t.Helper()
	issued, err := a.authority.Issue(name, nil, addresses...)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(issued.Certificate, issued.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func (a *Agent) serve(w http.ResponseWriter, r *http.Request) {
	a.Seen <- r.Clone(context.Background())
	if websocket.IsWebSocketUpgrade(r) {
		echo(w, r)
		return
	}
	if answer, ok := a.Answers[path.Base(r.URL.Path)]; ok {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answer)
		return
	}
	_, _ = io.WriteString(w, r.Method+" "+r.URL.RequestURI())
}

func echo(w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{Subprotocols: []string{"plain.kubevirt.io"}}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	for {
		kind, data, err := conn.ReadMessage()
		if err != nil {
			return
		}
		if err := conn.WriteMessage(kind, data); err != nil {
			return
		}
		if strings.Contains(r.URL.Path, "/portforward/") {
			_ = conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
		}
	}
}
