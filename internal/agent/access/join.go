package access

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// Subprotocol is how bytes travel in websocket messages: binary messages carry them as they are, text messages mean nothing, a
// normal close is the end of the stream and any other an error.
const Subprotocol = "plain.kubevirt.io"

// Sizes in bytes and times of the framing.
const (
	bufferSize     = 10240
	maxDatagram    = 1 << 16
	handshakeLimit = 10 * time.Second
	pingInterval   = 10 * time.Second // idle consoles would die at load balancers in between
	pongLimit      = 60 * time.Second
	closeLimit     = time.Second
)

var upgrader = websocket.Upgrader{
	HandshakeTimeout: handshakeLimit,
	ReadBufferSize:   bufferSize,
	WriteBufferSize:  bufferSize,
	Subprotocols:     []string{Subprotocol},
	CheckOrigin:      func(*http.Request) bool { return true }, // the client is the controller, not a browser
}

// framing copies one message to a connection, and says how much of the connection fits into one message.
type framing struct {
	write func(to io.Writer, message io.Reader) error
	size  int
}

var (
	// bytesOf is for streams: borders of messages mean nothing.
	bytesOf = framing{size: bufferSize, write: func(to io.Writer, message io.Reader) error {
		_, err := io.Copy(to, message)
		return err
	}}
	// datagramsOf keeps one message one datagram.
	datagramsOf = framing{size: maxDatagram, write: func(to io.Writer, message io.Reader) error {
		datagram, err := io.ReadAll(io.LimitReader(message, maxDatagram))
		if err != nil {
			return err
		}
		_, err = to.Write(datagram)
		if isRefused(err) {
			return nil // nobody listens; the next datagram may be luckier
		}
		return err
	}}
)

// join copies both ways until either side or ctx ends, then closes both.
func join(ctx context.Context, socket *websocket.Conn, conn net.Conn, how framing) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var copies sync.WaitGroup
	copies.Go(func() { cancel(fromSocket(conn, socket, how)) })
	copies.Go(func() { cancel(toSocket(socket, conn, how)) })
	copies.Go(func() { keepAlive(ctx, socket) })
	<-ctx.Done()
	sayGoodbye(socket, context.Cause(ctx))
	socket.Close()
	conn.Close()
	copies.Wait()
}

// errEnd is a stream's orderly end.
var errEnd = errors.New("the stream has ended")

func sayGoodbye(socket *websocket.Conn, cause error) {
	code, text := websocket.CloseNormalClosure, ""
	if !errors.Is(cause, errEnd) {
		code, text = websocket.CloseGoingAway, "the connection was ended"
	}
	message := websocket.FormatCloseMessage(code, text)
	_ = socket.WriteControl(websocket.CloseMessage, message, time.Now().Add(closeLimit)) // the other side may have gone first
}

func fromSocket(conn net.Conn, socket *websocket.Conn, how framing) error {
	renew := func(string) error { return socket.SetReadDeadline(time.Now().Add(pongLimit)) }
	socket.SetPongHandler(renew)
	for {
		if err := renew(""); err != nil {
			return err
		}
		kind, message, err := socket.NextReader()
		if websocket.IsCloseError(err, websocket.CloseNormalClosure) {
			return errEnd
		}
		if err != nil {
			return err
		}
		if kind != websocket.BinaryMessage {
			continue
		}
		if err := how.write(conn, message); err != nil {
			return err
		}
	}
}

func toSocket(socket *websocket.Conn, conn net.Conn, how framing) error {
	buffer := make([]byte, how.size)
	for {
		n, err := conn.Read(buffer)
		if n > 0 {
			if err := socket.WriteMessage(websocket.BinaryMessage, buffer[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return errEnd
		case isRefused(err) && how.size == maxDatagram:
			// an earlier datagram found nobody
		case err != nil:
			return err
		}
	}
}

func keepAlive(ctx context.Context, socket *websocket.Conn) {
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			_ = socket.WriteControl(websocket.PingMessage, []byte("keep alive"), time.Now().Add(closeLimit)) // a dead peer ends the read
		}
	}
}
