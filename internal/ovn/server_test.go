package ovn

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// server is a real ovsdb-server with a Northbound database of its own.
type server struct {
	t    testing.TB
	dir  string
	proc *exec.Cmd
}

func startServer(t testing.TB) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "pbnb") // t.TempDir's path can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir}
	t.Cleanup(func() { s.kill(); os.RemoveAll(dir) })
	s.create()
	s.start()
	return s
}

func (s *server) socket() string { return filepath.Join(s.dir, "nb.sock") }
func (s *server) file() string   { return filepath.Join(s.dir, "nb.db") }

func (s *server) create() {
	s.t.Helper()
	out, err := exec.Command("ovsdb-tool", "create", s.file(), "schema/ovn-nb.ovsschema").CombinedOutput()
	if err != nil {
		s.t.Fatalf("ovsdb-tool create: %v: %s", err, out)
	}
}

func (s *server) start() {
	s.t.Helper()
	s.proc = exec.Command("ovsdb-server", "--no-chdir", "--unixctl="+filepath.Join(s.dir, "ctl"), "--remote=punix:"+s.socket(), s.file())
	s.proc.Env = append(os.Environ(), "OVS_RUNDIR="+s.dir, "OVS_LOGDIR="+s.dir)
	if err := s.proc.Start(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) kill() {
	if s.proc != nil {
		s.proc.Process.Kill()
		s.proc.Wait()
		s.proc = nil
	}
}

// wipe starts the server again on an empty database.
func (s *server) wipe() {
	s.t.Helper()
	s.kill()
	if err := os.Remove(s.file()); err != nil {
		s.t.Fatal(err)
	}
	s.create()
	s.start()
}

func (s *server) dial() Dial {
	return DialOVSDB(Endpoint{Address: "unix:" + s.socket()}, quiet())
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// connection dials until the server listens.
func connection(t *testing.T, dial Dial, changed func(Change)) Database {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	store := NewStore(Config{Dial: func(ctx context.Context, _ func(Change)) (Database, error) { return dial(ctx, changed) }, Log: quiet()})
	db, err := store.connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// onBoth runs a test on the fake and on a real server: what holds for the one must hold for the other.
func onBoth(t *testing.T, test func(t *testing.T, dial Dial, wipe func())) {
	t.Run("fake", func(t *testing.T) {
		f := NewFake()
		test(t, f.Dial, f.Wipe)
	})
	t.Run("ovsdb-server", func(t *testing.T) {
		s := startServer(t)
		test(t, s.dial(), s.wipe)
	})
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
