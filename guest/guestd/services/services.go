// Package services is what a test finds on a guest: a page that says who answers, echo by TCP and UDP, and an orderly
// shutdown when the power button is pressed.
package services

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"patchbay/guest/guestd/nic"
)

// HTTP serves the page on a port: "/" for people; for programs "/healthz", "/hostname", "/client" (the asker's address),
// "/state", and "/bytes/N" for throughput.
func HTTP(ctx context.Context, port int, states func() []nic.State) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /hostname", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, hostname()) })
	mux.HandleFunc("GET /client", func(w http.ResponseWriter, r *http.Request) {
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			fmt.Fprint(w, from.Addr().Unmap())
		}
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hostname: %s\nclient: %s\nserver: %s\n", hostname(), r.RemoteAddr, r.Context().Value(http.LocalAddrContextKey))
		for _, s := range states() {
			for _, a := range s.Addresses {
				fmt.Fprintf(w, "address: %s %s\n", s.Name, a)
			}
		}
	})
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		out := json.NewEncoder(w)
		out.SetIndent("", "  ")
		err := out.Encode(map[string]any{"hostname": hostname(), "client": r.RemoteAddr, "interfaces": states()})
		if err != nil {
			slog.Warn("answer /state", "error", err)
		}
	})
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
		if err != nil || n < 0 {
			http.Error(w, "ask for /bytes/N with a number N", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		io.CopyN(w, zeros{}, n) //nolint:errcheck // the client went away
	})
	server := &http.Server{Addr: ":" + strconv.Itoa(port), Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { server.Close() })
	return server.ListenAndServe()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

// EchoTCP sends back what it gets on port 7.
func EchoTCP(ctx context.Context) error {
	l, err := net.Listen("tcp", ":7")
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			io.Copy(c, c) //nolint:errcheck // the client went away
		}()
	}
}

// EchoUDP sends back every datagram on port 7, from the address that it was sent to.
func EchoUDP(ctx context.Context) error {
	return Datagrams(ctx, 7, func(c net.PacketConn, from net.Addr, data []byte) {
		c.WriteTo(data, from) //nolint:errcheck // as lossy as the protocol
	})
}

// Datagrams hands every datagram on a UDP port to a function until the context ends.
func Datagrams(ctx context.Context, port int, got func(c net.PacketConn, from net.Addr, data []byte)) error {
	c, err := net.ListenPacket("udp", netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(port)).String())
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	buffer := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buffer)
		if err != nil {
			return err
		}
		got(c, from, buffer[:n])
	}
}

// PowerButton calls press when an ACPI power button is pressed.
func PowerButton(press func()) error {
	devices, err := filepath.Glob("/dev/input/event*")
	if err != nil || len(devices) == 0 {
		return errors.Join(err, errors.New("no input devices: the power button has no effect"))
	}
	for _, d := range devices {
		f, err := os.Open(d)
		if err != nil {
			return err
		}
		go watchKeys(f, press)
	}
	return nil
}

// watchKeys reads events of 24 bytes: time, type, code, value.
func watchKeys(f *os.File, press func()) {
	defer f.Close()
	const evKey, keyPower = 1, 116
	event := make([]byte, 24)
	for {
		if _, err := io.ReadFull(f, event); err != nil {
			return
		}
		kind, code := binary.LittleEndian.Uint16(event[16:]), binary.LittleEndian.Uint16(event[18:])
		if kind == evKey && code == keyPower && binary.LittleEndian.Uint32(event[20:]) == 1 {
			press()
		}
	}
}
