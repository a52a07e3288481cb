package access

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"patchbay/internal/launcher/protocol"
)

func (s *Server) console(w http.ResponseWriter, r *http.Request, m Machine) {
	if err := checkConsole(m.VMI()); err != nil {
		refuse(w, err)
		return
	}
	s.exclusive(w, r, m, protocol.ConsoleName, false)
}

func (s *Server) screen(w http.ResponseWriter, r *http.Request, m Machine) {
	if err := checkScreen(m.VMI()); err != nil {
		refuse(w, err)
		return
	}
	preserve, _ := strconv.ParseBool(r.URL.Query().Get("preserveSession"))
	s.exclusive(w, r, m, protocol.VNCName, preserve)
}

// exclusive serves a socket that has one user at a time. A new one replaces the old one, unless that is to be preserved.
func (s *Server) exclusive(w http.ResponseWriter, r *http.Request, m Machine, socket string, preserve bool) {
	ctx, release, err := s.sessions.take(r.Context(), string(m.VMI().UID)+"/"+socket, preserve)
	if errors.Is(err, errBusy) {
		refuse(w, apierrors.NewServiceUnavailable("Active VNC connection. Request denied."))
		return
	}
	if err != nil {
		return // the client has gone
	}
	defer release()
	conn, err := m.DialSocket(ctx, socket)
	if err != nil {
		refuse(w, err)
		return
	}
	s.carry(ctx, w, r, conn, bytesOf)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request, m Machine) {
	port, err := strconv.ParseUint(r.PathValue("port"), 10, 16)
	if err != nil || port == 0 {
		refuse(w, apierrors.NewBadRequest(fmt.Sprintf("%q is not a port; use 1-65535", r.PathValue("port"))))
		return
	}
	network := strings.ToLower(r.PathValue("protocol"))
	if network == "" {
		network = "tcp"
	}
	if network != "tcp" && network != "udp" {
		refuse(w, apierrors.NewBadRequest(fmt.Sprintf("protocol %q cannot be forwarded; use tcp or udp", network)))
		return
	}
	if err := checkPortForward(m.VMI()); err != nil {
		refuse(w, err)
		return
	}
	conn, err := m.DialGuest(r.Context(), network, uint16(port))
	if err != nil {
		refuse(w, apierrors.NewInternalError(fmt.Errorf("dialing VM: %w", err)))
		return
	}
	how := bytesOf
	if network == "udp" {
		how = datagramsOf
	}
	s.carry(r.Context(), w, r, conn, how)
}

// carry makes the request a websocket and joins it with conn, which it closes.
func (s *Server) carry(ctx context.Context, w http.ResponseWriter, r *http.Request, conn net.Conn, how framing) {
	defer conn.Close()
	if !s.streams.enter() {
		refuse(w, apierrors.NewServiceUnavailable("the node's agent is stopping; try again"))
		return
	}
	defer s.streams.leave()
	socket, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // answered by the upgrader
	}
	join(ctx, socket, conn, how)
}
