package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// anonymous makes a namespace that lives as long as the returned path's descriptor.
func anonymous(t *testing.T) string {
	t.Helper()
	var file *os.File
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		var err error
		file, err = os.Open(Own)
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", file.Fd())
}

func id(t *testing.T, path string) string {
	t.Helper()
	name, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestDoEntersAndReturns(t *testing.T) {
	home, there := id(t, Own), anonymous(t)
	want := id(t, there)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			var got string
			if err := Do(there, func() (err error) { got, err = os.Readlink(Own); return err }); err != nil {
				t.Error(err)
			}
			if got != want {
				t.Errorf("ran in %s, want %s", got, want)
			}
		})
	}
	wg.Wait()
	if got := id(t, Own); got != home {
		t.Errorf("the caller is in %s afterwards, want %s", got, home)
	}
}

func TestDoPassesTheErrorOn(t *testing.T) {
	want := errors.New("no")
	if err := Do(Own, func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestDoSurvivesAnEndedGoroutine(t *testing.T) {
	err := Do(anonymous(t), func() error { runtime.Goexit(); return nil })
	if err == nil || !strings.Contains(err.Error(), "ended its goroutine") {
		t.Errorf("got %v", err)
	}
}

func TestOpenRefusesOrdinaryFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an ordinary file: got %v, want ErrNotExist", err)
	}
	if Exists(path) || Exists(path+"-absent") {
		t.Error("a path that is no namespace is said to exist")
	}
	if !Exists(Own) {
		t.Error("the own namespace is said not to exist")
	}
}

func TestSame(t *testing.T) {
	there := anonymous(t)
	for _, c := range []struct {
		a, b string
		want bool
	}{{Own, Own, true}, {Own, there, false}, {there, there, true}} {
		if got, err := Same(c.a, c.b); err != nil || got != c.want {
			t.Errorf("Same(%s, %s) = %v, %v; want %v", c.a, c.b, got, err, c.want)
		}
	}
}
