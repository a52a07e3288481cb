package launcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"patchbay/internal/launcher/protocol"
)

// console keeps the last output of the guest's serial console in a file of bounded size. QEMU could write the file itself, but never
// stops: the file lies in memory, and a guest that prints would fill it.
type console struct {
	pipe *os.File
	done chan struct{}
}

// openConsole makes the pipe that QEMU writes to and begins to read it. It is held open for writing too: QEMU may open it late or never.
func openConsole(dir string) (*console, error) {
	path := filepath.Join(dir, protocol.ConsolePipe)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make room for the console's pipe: %w", err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("make the console's pipe: %w", err)
	}
	pipe, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open the console's pipe: %w", err)
	}
	log, err := newRing(filepath.Join(dir, protocol.ConsoleLog), protocol.ConsoleLogSize)
	if err != nil {
		pipe.Close()
		return nil, err
	}
	c := &console{pipe: pipe, done: make(chan struct{})}
	go c.copy(log)
	return c, nil
}

// copy never stops reading, even when the log cannot be written: QEMU would stand still with a full pipe.
func (c *console) copy(log *ring) {
	defer close(c.done)
	defer log.close()
	buffer := make([]byte, 4<<10)
	for {
		n, err := c.pipe.Read(buffer)
		if err != nil {
			return
		}
		log.write(buffer[:n])
	}
}

func (c *console) close() {
	c.pipe.Close()
	<-c.done
}

// ring is a file that holds the last bytes written, at least half and at most all of its limit.
type ring struct {
	path  string
	limit int64
	file  *os.File
	size  int64
}

func newRing(path string, limit int64) (*ring, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the console's log: %w", err)
	}
	return &ring{path: path, limit: limit, file: file}, nil
}

// write appends. A full disk loses output of the console, nothing else.
func (r *ring) write(data []byte) {
	if r.size+int64(len(data)) > r.limit {
		r.forget()
	}
	n, _ := r.file.WriteAt(data, r.size)
	r.size += int64(n)
}

// forget keeps the newer half, in a new file that takes the old one's place at once: a reader never sees half a log.
func (r *ring) forget() {
	keep := make([]byte, min(r.size, r.limit/2))
	if _, err := r.file.ReadAt(keep, r.size-int64(len(keep))); err != nil {
		keep = nil
	}
	fresh, err := os.OpenFile(r.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = fresh.Write(keep)
		err = errors.Join(err, os.Rename(r.path+".new", r.path))
	}
	if err != nil {
		if fresh != nil {
			fresh.Close()
		}
		// The limit counts more than the history.
		_ = r.file.Truncate(0)
		r.size = 0
		return
	}
	r.file.Close()
	r.file, r.size = fresh, int64(len(keep))
}

func (r *ring) close() { r.file.Close() }
