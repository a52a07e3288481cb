package supervise

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Logs are cut at logLimit; logKeep older pieces stay beside them as .1, .2, …
const (
	logLimit = 16 << 20
	logKeep  = 2
)

// rotateLogs copies logs that grew too long away and cuts them. Cutting in place lets processes keep their open file even while no
// supervisor runs; lines written between the copy and the cut are lost.
func rotateLogs(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.Size() > logLimit {
			errs = append(errs, rotate(file))
		}
	}
	return errors.Join(errs...)
}

func rotate(file string) error {
	for i := logKeep; i > 1; i-- {
		err := os.Rename(fmt.Sprintf("%s.%d", file, i-1), fmt.Sprintf("%s.%d", file, i))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := copyFile(file+".1", file); err != nil {
		return err
	}
	return os.Truncate(file, 0)
}

func copyFile(target, source string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(target)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Subreaper makes the calling process the parent of orphans that its descendants leave, so that they are reaped even where the
// host's first process is slow to do so.
func Subreaper() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// reaper collects ended children that nobody waits for. One that somebody waits for is collected at once, so a child seen
// ended twice in a row is an orphan.
type reaper struct{ seen map[int]bool }

func (r *reaper) reap() {
	now := make(map[int]bool)
	for _, pid := range endedChildren() {
		if !r.seen[pid] {
			now[pid] = true
			continue
		}
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
	r.seen = now
}

func endedChildren() []int {
	self := strconv.Itoa(os.Getpid())
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	var ended []int
	for _, file := range stats {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		text := string(data)
		fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		if len(fields) < 2 || fields[0] != "Z" || fields[1] != self {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			ended = append(ended, pid)
		}
	}
	return ended
}
