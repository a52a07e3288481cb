package ovn

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
)

// northdLock is the lock on the Southbound database that the active northd holds.
const northdLock = "ovn_northd"

// Southbound does the few things Patchbay does to the Southbound database: it holds northd back and removes the chassis of
// a deleted node. It copies nothing: that database is large and not ours.
type Southbound struct {
	Endpoint Endpoint

	mu   sync.Mutex
	held *session
}

// Hold takes northd's lock away, so that northd stands by, until Release or the end of this process.
func (s *Southbound) Hold(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil && s.held.alive() {
		return nil
	}
	session, err := s.open(ctx)
	if err != nil {
		return err
	}
	var answer struct {
		Locked bool `json:"locked"`
	}
	err = session.call(ctx, "steal", []any{northdLock}, &answer)
	if err == nil && !answer.Locked {
		err = errors.New("the server did not hand over northd's lock")
	}
	if err != nil {
		session.close()
		return fmt.Errorf("hold northd: %w", err)
	}
	s.held = session
	return nil
}

// Release gives the lock back: it ends with the connection.
func (s *Southbound) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		s.held.close()
		s.held = nil
	}
}

// RemoveChassis removes what a node that is gone left behind, so that no other node keeps a tunnel to it.
func (s *Southbound) RemoveChassis(ctx context.Context, name string) error {
	session, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer session.close()
	params := []any{"OVN_Southbound"}
	for _, table := range []string{"Chassis", "Chassis_Private"} {
		params = append(params, map[string]any{"op": "delete", "table": table, "where": []any{[]any{"name", "==", name}}})
	}
	var results []struct {
		Error   string `json:"error"`
		Details string `json:"details"`
	}
	if err := session.call(ctx, "transact", params, &results); err != nil {
		return fmt.Errorf("remove chassis %s: %w", name, err)
	}
	for _, r := range results {
		if r.Error != "" {
			return fmt.Errorf("remove chassis %s: %s: %s", name, r.Error, r.Details)
		}
	}
	return nil
}

func (s *Southbound) open(ctx context.Context) (*session, error) {
	network, address, ok := strings.Cut(s.Endpoint.Address, ":")
	if !ok {
		return nil, fmt.Errorf("southbound database: %q is not of the form unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT", s.Endpoint.Address)
	}
	var conn net.Conn
	var err error
	if network == "ssl" {
		dialer := tls.Dialer{Config: s.Endpoint.TLS}
		conn, err = dialer.DialContext(ctx, "tcp", address)
	} else {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the southbound database: %w", err)
	}
	session := &session{conn: conn, gone: make(chan struct{}), answers: make(chan message, 1)}
	go session.read()
	return session, nil
}

// session is one JSON-RPC connection (RFC 7047 section 4) with one call at a time.
type session struct {
	conn    net.Conn
	writing sync.Mutex
	answers chan message
	gone    chan struct{}
}

type message struct {
	Method string          `json:"method,omitempty"`
	Params json.RawMessage `json:"params,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  json.RawMessage `json:"error,omitempty"`
	ID     any             `json:"id"`
}

// read hands answers to the caller and answers the server's probes, without which it would hang up.
func (s *session) read() {
	defer close(s.gone)
	in := json.NewDecoder(s.conn)
	for {
		var m message
		if err := in.Decode(&m); err != nil {
			return
		}
		switch m.Method {
		case "":
			select {
			case s.answers <- m:
			default: // an answer that nobody waits for any more
			}
		case "echo":
			if err := s.write(map[string]any{"result": m.Params, "error": nil, "id": m.ID}); err != nil {
				return
			}
		}
	}
}

func (s *session) write(m any) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return json.NewEncoder(s.conn).Encode(m)
}

func (s *session) call(ctx context.Context, method string, params []any, result any) error {
	if err := s.write(map[string]any{"method": method, "params": params, "id": method}); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.gone:
		return errors.New("the server closed the connection")
	case m := <-s.answers:
		if len(m.Error) > 0 && string(m.Error) != "null" {
			return fmt.Errorf("the server answers %s", m.Error)
		}
		return json.Unmarshal(m.Result, result)
	}
}

func (s *session) alive() bool {
	select {
	case <-s.gone:
		return false
	default:
		return true
	}
}

func (s *session) close() {
	s.conn.Close()
	<-s.gone
}
