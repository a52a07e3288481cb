package nic

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
)

// Resolver keeps resolv.conf: the name servers and search domains of every interface together.
type Resolver struct {
	Path string

	mu      sync.Mutex
	sources map[string]source
}

type source struct {
	servers []netip.Addr
	search  []string
}

// Set replaces what one interface contributes; the empty name stands for the whole machine and goes first.
func (r *Resolver) Set(name string, servers []netip.Addr, search []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sources == nil {
		r.sources = map[string]source{}
	}
	r.sources[name] = source{servers, search}
	if err := writeFile(r.Path, r.text()); err != nil {
		slog.Error("name servers", "error", err)
	}
}

func (r *Resolver) text() []byte {
	var servers []netip.Addr
	var search []string
	for _, name := range slices.Sorted(maps.Keys(r.sources)) {
		for _, a := range r.sources[name].servers {
			if !slices.Contains(servers, a) {
				servers = append(servers, a)
			}
		}
		for _, d := range r.sources[name].search {
			if !slices.Contains(search, d) {
				search = append(search, d)
			}
		}
	}
	var out bytes.Buffer
	if len(search) > 0 {
		out.WriteString("search")
		for _, d := range search {
			out.WriteString(" " + d)
		}
		out.WriteString("\n")
	}
	for _, a := range servers {
		fmt.Fprintf(&out, "nameserver %s\n", a)
	}
	return out.Bytes()
}

// writeFile replaces a file in one step.
func writeFile(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
