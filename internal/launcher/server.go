package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"patchbay/internal/launcher/protocol"
)

const (
	// maxRequest bounds a request in bytes, maxFiles its descriptors: a multiqueue NIC takes two per virtual CPU.
	maxRequest = 4 << 20
	maxFiles   = 253 // the kernel's SCM_MAX_FD
	// talkTime bounds the transfer of a request and of its response.
	talkTime = 10 * time.Second
)

// serve accepts connections until ctx ends.
func (l *Launcher) serve(ctx context.Context, listener *net.UnixListener, connections *sync.WaitGroup) {
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	for {
		conn, err := listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			l.cfg.Log.Warn("accept a connection", "error", err)
			continue
		}
		connections.Go(func() {
			defer conn.Close()
			if err := l.converse(ctx, conn); err != nil {
				l.cfg.Log.Warn("a request to the launcher", "error", err)
			}
		})
	}
}

// converse reads one request and answers it.
func (l *Launcher) converse(ctx context.Context, conn *net.UnixConn) error {
	_ = conn.SetReadDeadline(time.Now().Add(talkTime))
	interrupt := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	line, files, err := readRequest(conn)
	interrupt()
	if err != nil {
		closeAll(files)
		return err
	}
	text, err := json.Marshal(l.answer(ctx, line, files))
	if err != nil {
		return err
	}
	_ = conn.SetWriteDeadline(time.Now().Add(talkTime))
	_, err = conn.Write(append(text, '\n'))
	return err
}

// answer carries out a request. It takes over the files.
func (l *Launcher) answer(ctx context.Context, line []byte, files []*os.File) protocol.Response {
	var r protocol.Request
	problem := ""
	switch err := json.Unmarshal(line, &r); {
	case err != nil:
		problem = "the request is not JSON: " + err.Error()
	case r.Start != nil && r.Start.FDs != len(files):
		problem = fmt.Sprintf("the request says that %d descriptors come with it, but there are %d", r.Start.FDs, len(files))
	case r.Start != nil && r.Start.ID == "":
		problem = "the request to start has no ID"
	case r.Start != nil:
		return l.ask(ctx, request{start: r.Start, files: files})
	case r.Stop != nil:
		closeAll(files)
		return l.ask(ctx, request{stop: true})
	case r.Digest != nil:
		closeAll(files)
		return l.digest(ctx, r.Digest.Sources)
	case r.Status == nil:
		problem = "the request asks for nothing that this launcher knows"
	}
	closeAll(files)
	if problem != "" {
		return l.fail(problem)
	}
	return l.now()
}

// ask hands a request to the main loop and waits for the answer.
func (l *Launcher) ask(ctx context.Context, r request) protocol.Response {
	done := make(chan protocol.Response, 1)
	r.done = done
	select {
	case l.requests <- r:
	case <-ctx.Done():
		closeAll(r.files)
		return l.fail("the launcher is about to end")
	}
	select {
	case response := <-done:
		return response
	case <-ctx.Done():
		select {
		case response := <-done: // answered with its last breath
			return response
		default:
			return l.fail("the launcher is about to end")
		}
	}
}

// readRequest reads a line, with the descriptors that came on its first byte.
func readRequest(conn *net.UnixConn) ([]byte, []*os.File, error) {
	buffer, control := make([]byte, 16<<10), make([]byte, syscall.CmsgSpace(maxFiles*4))
	n, controlLength, _, _, err := conn.ReadMsgUnix(buffer, control)
	if err != nil {
		return nil, nil, fmt.Errorf("read a request: %w", err)
	}
	files, err := received(control[:controlLength])
	if err != nil {
		return nil, files, err
	}
	line := bytes.Clone(buffer[:n])
	for !bytes.HasSuffix(line, []byte("\n")) {
		if len(line) > maxRequest {
			return nil, files, fmt.Errorf("a request is longer than %d bytes", maxRequest)
		}
		n, err := conn.Read(buffer)
		if err != nil {
			return nil, files, fmt.Errorf("read a request: %w", err)
		}
		line = append(line, buffer[:n]...)
	}
	return line, files, nil
}

// received are the descriptors of a control message.
func received(control []byte) ([]*os.File, error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("read a request's descriptors: %w", err)
	}
	var files []*os.File
	for _, message := range messages {
		fds, err := syscall.ParseUnixRights(&message)
		if err != nil {
			return files, fmt.Errorf("read a request's descriptors: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}
