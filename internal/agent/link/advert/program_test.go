package advert

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/cilium/ebpf"
)

// packet is an Ethernet frame with IPv6 in it: headers are (protocol, bytes) with the next protocol filled in.
type piece struct {
	protocol byte
	body     []byte
}

func ext(protocol byte, units int) piece {
	body := make([]byte, 8*(units+1))
	body[1] = byte(units)
	return piece{protocol, body}
}

func authentication(words int) piece {
	body := make([]byte, 4*(words+2))
	body[1] = byte(words)
	return piece{auth, body}
}

func frag(offset uint16, more bool) piece {
	body := make([]byte, 8)
	binary.BigEndian.PutUint16(body[2:], offset<<3)
	if more {
		body[3] |= 1
	}
	return piece{fragment, body}
}

func message(kind byte) piece { return piece{icmp6, append([]byte{kind}, make([]byte, 15)...)} }

func ipv6(pieces ...piece) []byte {
	header := make([]byte, ipv6Header)
	header[0] = 0x60
	var payload []byte
	for i, p := range pieces {
		if i == 0 {
			header[6] = p.protocol
		}
		if i+1 < len(pieces) {
			p.body[0] = pieces[i+1].protocol
		}
		payload = append(payload, p.body...)
	}
	binary.BigEndian.PutUint16(header[4:], uint16(len(payload)))
	return append(header, payload...)
}

func ethernet(body []byte, types ...uint16) []byte {
	out := make([]byte, 12)
	for i, t := range types {
		out = binary.BigEndian.AppendUint16(out, t)
		if i+1 < len(types) {
			out = append(out, 0, 5) // the tag
		}
	}
	return append(out, body...)
}

func loaded(t testing.TB) *ebpf.Program {
	t.Helper()
	p, err := program()
	if err != nil {
		var refused *ebpf.VerifierError
		if errors.As(err, &refused) {
			t.Fatalf("%+v", refused)
		}
		t.Fatal(err)
	}
	return p
}

func verdict(t testing.TB, frame []byte) uint32 {
	t.Helper()
	got, _, err := loaded(t).Test(frame)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests load a program into the kernel; run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestProgram(t *testing.T) {
	many := func(n int) (out []piece) {
		for range n {
			out = append(out, ext(options, 0))
		}
		return out
	}
	next := func(p piece, protocol byte) piece { p.body[0] = protocol; return p }
	plain := func(pieces ...piece) []byte { return ethernet(ipv6(pieces...), 0x86dd) }
	cases := map[string]struct {
		frame []byte
		want  uint32
	}{
		"advertisement":                   {plain(message(134)), drop},
		"solicitation":                    {plain(message(133)), pass},
		"neighbour advertisement":         {plain(message(136)), pass},
		"echo":                            {plain(message(128)), pass},
		"hop by hop":                      {plain(ext(hopByHop, 0), message(134)), drop},
		"hop by hop, listener report":     {plain(ext(hopByHop, 0), message(143)), pass},
		"options":                         {plain(ext(options, 3), message(134)), drop},
		"routing":                         {plain(ext(routing, 2), message(134)), drop},
		"long options":                    {plain(ext(options, 100), message(134)), drop},
		"authenticated":                   {plain(authentication(4), message(134)), drop},
		"several":                         {plain(ext(hopByHop, 0), ext(options, 1), ext(routing, 0), authentication(1), ext(options, 0), message(134)), drop},
		"mobility":                        {plain(ext(mobility, 0), message(134)), drop},
		"as many headers as are followed": {plain(append(many(maxHeaders), message(128))...), pass},
		"an advertisement behind as many": {plain(append(many(maxHeaders), message(134))...), drop},
		"more headers than are followed":  {plain(append(many(maxHeaders+1), message(128))...), drop},
		"first fragment":                  {plain(frag(0, true), message(134)), drop},
		"atomic fragment":                 {plain(frag(0, false), message(134)), drop},
		"first fragment of an echo":       {plain(frag(0, true), message(128)), pass},
		"first fragment with options":     {plain(frag(0, true), ext(options, 0), message(134)), drop},
		"first fragment, message hidden":  {plain(frag(0, true), next(ext(options, 0), icmp6)), drop},
		"first fragment, options cut":     {plain(frag(0, true), piece{options, []byte{icmp6, 20, 0, 0}}), drop},
		"first fragment, nothing in it":   {plain(next(frag(0, true), icmp6)), drop},
		"later fragment":                  {plain(frag(10, true), message(134)), pass},
		"last fragment":                   {plain(frag(10, false), message(134)), pass},
		"TCP that looks like one":         {plain(piece{6, message(134).body}), pass},
		"UDP after options":               {plain(ext(options, 0), piece{17, message(134).body}), pass},
		"encrypted":                       {plain(piece{50, message(134).body}), pass},
		"no next header":                  {plain(piece{59, nil}), pass},
		"tagged":                          {ethernet(ipv6(message(134)), 0x8100, 0x86dd), drop},
		"tagged twice":                    {ethernet(ipv6(message(134)), 0x88a8, 0x8100, 0x86dd), drop},
		"tagged echo":                     {ethernet(ipv6(message(128)), 0x8100, 0x86dd), pass},
		"IPv4":                            {ethernet(ipv6(message(134)), 0x0800), pass},
		"ARP":                             {ethernet(make([]byte, 28), 0x0806), pass},
		"header cut":                      {ethernet(make([]byte, 5), 0x86dd), pass},
		"nothing behind the tag":          {ethernet(nil, 0x8100), pass},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := verdict(t, c.frame); got != c.want {
				t.Errorf("verdict %d, want %d", got, c.want)
			}
		})
	}
}

// A chain of any headers that ends in an advertisement never passes, and never passes differently from what a receiver would follow.
func TestProgramAnyChain(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	kinds := []byte{hopByHop, routing, options, mobility, identity, shim6}
	for range 3000 {
		var pieces []piece
		for range random.IntN(maxHeaders + 3) {
			switch random.IntN(5) {
			case 0:
				pieces = append(pieces, authentication(random.IntN(8)))
			case 1:
				pieces = append(pieces, frag(0, random.IntN(2) == 0))
			default:
				pieces = append(pieces, ext(kinds[random.IntN(len(kinds))], random.IntN(8)))
			}
		}
		whole := ethernet(ipv6(append(pieces, message(134))...), 0x86dd)
		if verdict(t, whole) != drop {
			t.Fatalf("an advertisement passes behind %v", pieces)
		}
		if want, got := uint32(pass), verdict(t, ethernet(ipv6(append(pieces, message(128))...), 0x86dd)); len(pieces) <= maxHeaders && got != want {
			t.Fatalf("an echo is dropped behind %v", pieces)
		}
	}
}

func BenchmarkProgram(b *testing.B) {
	frame := ethernet(make([]byte, 1400), 0x0800)
	_, took, err := loaded(b).Benchmark(frame, b.N, b.ResetTimer)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(took.Nanoseconds()), "kernel-ns/frame")
}
