package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"patchbay/internal/agent/cni/shim"
)

// Server answers the shim on a unix socket.
type Server struct {
	path     string
	listener net.Listener
	handle   func(context.Context, shim.Request) (json.RawMessage, error)
	log      *slog.Logger
}

// Listen opens the socket, which only root may use. A socket file that an earlier agent left is replaced.
func Listen(path string, handle func(context.Context, shim.Request) (json.RawMessage, error), log *slog.Logger) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the CNI socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace the CNI socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for CNI requests: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, fmt.Errorf("restrict the CNI socket to root: %w", err)
	}
	return &Server{path, listener, handle, log}, nil
}

// Serve answers requests until the context ends, and then waits for those in progress: they are cancelled.
func (s *Server) Serve(ctx context.Context) error {
	var inProgress sync.WaitGroup
	defer inProgress.Wait()
	// Closing would remove the socket file, whose time tells the shim when the agent was last alive.
	s.listener.(*net.UnixListener).SetUnlinkOnClose(false)
	stop := context.AfterFunc(ctx, func() { s.listener.Close() })
	defer stop()
	inProgress.Go(func() { s.beat(ctx) })
	for {
		conn, err := s.listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept CNI requests: %w", err)
		}
		inProgress.Go(func() { s.answer(ctx, conn) })
	}
}

// beat tells the shim that the agent is alive.
func (s *Server) beat(ctx context.Context) {
	ticker := time.NewTicker(shim.Grace / 4)
	defer ticker.Stop()
	for {
		now := time.Now()
		if err := os.Chtimes(s.path, now, now); err != nil {
			s.log.Warn("cannot show that the agent is alive", "error", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

const requestDeadline = 5 * time.Second // to send the request, once connected

func (s *Server) answer(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	var request shim.Request
	_ = conn.SetReadDeadline(time.Now().Add(requestDeadline))
	if err := json.NewDecoder(conn).Decode(&request); err != nil {
		if errors.Is(err, io.EOF) {
			return // somebody only looked whether the agent answers
		}
		s.log.Warn("unreadable CNI request", "error", err)
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends when conn is closed
		_, _ = conn.Read(make([]byte, 1))
		cancel(errors.New("the runtime gave up waiting"))
	}()
	begun := time.Now()
	result, err := s.handle(ctx, request)
	s.note(request, err, time.Since(begun))
	if err := json.NewEncoder(conn).Encode(response(result, err)); err != nil && ctx.Err() == nil {
		s.log.Warn("CNI answer not delivered", "command", request.Command, "error", err)
	}
}

func response(result json.RawMessage, err error) shim.Response {
	if err == nil {
		return shim.Response{Result: result}
	}
	var coded *shim.Error
	if !errors.As(err, &coded) {
		coded = &shim.Error{Code: shim.CodeWiring, Msg: err.Error()}
	}
	return shim.Response{Error: coded}
}

func (s *Server) note(r shim.Request, err error, took time.Duration) {
	log := s.log.With("command", r.Command, "sandbox", r.ContainerID, "took", took.Round(time.Millisecond))
	switch {
	case err != nil:
		log.Error("CNI request failed", "error", err)
	case r.Command == "STATUS" || r.Command == "CHECK":
	default:
		log.Info("CNI request done")
	}
}
