package controller

import (
	"crypto/tls"
	"strings"

	"patchbay/internal/ovn"
)

// openOverlay makes what the parts share of OVN. Nothing connects before the manager starts.
func (h *Host) openOverlay() {
	log := h.Log.With("part", "overlay")
	h.Southbound = &ovn.Southbound{Endpoint: h.endpoint(h.SB)}
	h.Rows = ovn.NewStore(ovn.Config{
		Dial: ovn.DialOVSDB(h.endpoint(h.NB), log),
		Gate: h.Southbound,
		Report: func(owner string, err error) {
			for _, tell := range h.Refused {
				tell(owner, err)
			}
		},
		Log: log,
	})
}

// endpoint gives a remote database the controller's certificate.
func (h *Host) endpoint(address string) ovn.Endpoint {
	e := ovn.Endpoint{Address: address}
	if strings.HasPrefix(address, "ssl:") {
		e.TLS = &tls.Config{Certificates: []tls.Certificate{h.Certificate}, RootCAs: h.Roots, MinVersion: tls.VersionTLS12}
	}
	return e
}
