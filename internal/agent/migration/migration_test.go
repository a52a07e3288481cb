package migration

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func here(f func() error) error { return f() }

// authority signs agents' certificates.
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
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "agents"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert}
}

func (a *authority) agent(t *testing.T, name string) Identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: der}, "tls.key": {Type: "EC PRIVATE KEY", Bytes: private}, "ca.crt": {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Identity{Dir: dir}
}

func listen(t *testing.T, id Identity) (*Listener, Target) {
	t.Helper()
	l, err := Listen(here, "127.0.0.1", id, "node-1", Control, Memory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l, Target{Node: "node-2", Address: "127.0.0.1", Ports: l.Ports()}
}

func TestOnlyTheTwoAgentsMeet(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	l, target := listen(t, ours.agent(t, AgentPrefix+"node-2"))
	cases := map[string]struct {
		id   Identity
		node string
		ok   bool
	}{
		"the source":                    {ours.agent(t, AgentPrefix+"node-1"), "node-2", true},
		"another agent":                 {ours.agent(t, AgentPrefix+"node-3"), "node-2", false},
		"the controller":                {ours.agent(t, "patchbay:controller"), "node-2", false},
		"another cluster":               {theirs.agent(t, AgentPrefix+"node-1"), "node-2", false},
		"the source looks for another":  {ours.agent(t, AgentPrefix+"node-1"), "node-3", false},
		"no certificate, no encryption": {Identity{Plain: true}, "node-2", false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			target.Node = c.node
			conn, err := target.Dial(t.Context(), here, c.id, Control)
			if err == nil {
				defer conn.Close()
				_, _ = conn.Write([]byte("hello\n"))
			}
			limit := 300 * time.Millisecond
			if c.ok {
				limit = 10 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			taken, err := l.Accept(ctx, Control)
			if (err == nil) != c.ok {
				t.Fatalf("accepted: %v, want %v", err, c.ok)
			}
			if err == nil {
				taken.Close()
			}
		})
	}
}

func TestWordsAndRefusals(t *testing.T) {
	a, b := net.Pipe()
	source, target := NewTalk(a), NewTalk(b)
	defer source.Close()
	hello := Word{Hello: &Hello{Migration: "m", Ports: 9, NICs: map[string]int{"default": 1}, Seed: bytes.Repeat([]byte{7}, 1<<20), Disks: []string{"disk0"}}}
	go source.Say(hello)
	got, err := target.Hear(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(hello, got); diff != "" {
		t.Errorf("(-said +heard):\n%s", diff)
	}
	go target.Say(Word{Failed: "the node's disk is full"})
	if _, err := source.Hear(t.Context()); err == nil || err.Error() != "the node's disk is full" {
		t.Errorf("heard %v", err)
	}
	target.Close()
	if _, err := source.Hear(t.Context()); err == nil {
		t.Error("a lost peer was not noticed")
	}
}

// QEMU ends its stream and then listens for the answer: the end of one direction must not be that of the other.
func TestSpliceKeepsTheWayBack(t *testing.T) {
	ca := newAuthority(t)
	l, target := listen(t, ca.agent(t, AgentPrefix+"node-2"))
	remote, err := target.Dial(t.Context(), here, ca.agent(t, AgentPrefix+"node-1"), Memory)
	if err != nil {
		t.Fatal(err)
	}
	arrived, err := l.Accept(t.Context(), Memory)
	if err != nil {
		t.Fatal(err)
	}
	source, sourceAgent := socketPair(t)
	dest, destAgent := socketPair(t)
	var count Counter
	done := make(chan error, 2)
	go func() { done <- Splice(t.Context(), sourceAgent, remote, &count) }()
	go func() { done <- Splice(t.Context(), destAgent, arrived, new(Counter)) }()
	stream := bytes.Repeat([]byte("guest"), 1<<20)
	go func() {
		source.Write(stream)
		source.(*net.UnixConn).CloseWrite()
	}()
	got, err := io.ReadAll(dest)
	if err != nil || !bytes.Equal(got, stream) {
		t.Fatalf("%d bytes arrived of %d: %v", len(got), len(stream), err)
	}
	dest.Write([]byte("loaded"))
	dest.Close()
	if answer, err := io.ReadAll(source); err != nil || string(answer) != "loaded" {
		t.Errorf("the answer is %q, %v", answer, err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if count.Sent() != int64(len(stream)) || count.Received() != 6 {
		t.Errorf("counted %d and %d", count.Sent(), count.Received())
	}
}

func socketPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	a, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}
