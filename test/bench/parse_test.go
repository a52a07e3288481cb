package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPercentile(t *testing.T) {
	var all []time.Duration
	for ms := range 100 {
		all = append(all, time.Duration(ms+1)*time.Millisecond)
	}
	for p, want := range map[int]float64{1: 1, 50: 50, 99: 99, 100: 100} {
		if got := percentile(all, p); got != want {
			t.Errorf("p%d of 1 to 100 ms is %v, want %v", p, got, want)
		}
	}
	if got := percentile(all[:20], 99); got != 20 {
		t.Errorf("p99 of 20 values is %v, want the largest", got)
	}
}

func TestRoundTrips(t *testing.T) {
	var out strings.Builder
	for n := range pings {
		fmt.Fprintf(&out, "64 bytes from 10.0.0.1: seq=%d ttl=64 time=%d.500 ms\n", n, n)
	}
	got, err := roundTrips(out.String())
	if err != nil || len(got) != pings || middle(got) != pings/2+0.5 {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := roundTrips("100 packets transmitted, 0 received"); err == nil {
		t.Error("silence gives no error")
	}
}

func TestInTurns(t *testing.T) {
	var order string
	got, err := inTurns([2]side{{name: "a"}, {name: "b"}}, 4, func(s side) ([]float64, error) {
		order += s.name
		return []float64{float64(len(order))}, nil
	})
	if want := [2][]float64{{1, 4, 5, 8}, {2, 3, 6, 7}}; err != nil || order != "abbaabba" || !cmp.Equal(got, want) {
		t.Errorf("order %s, %v, %v; want %v", order, got, err, want)
	}
}

func TestPickOptions(t *testing.T) {
	args := strings.Fields("/usr/bin/qemu -accel tcg,thread=multi -cpu max -m size=131080K -device VGA,id=v " +
		"-device virtio-net-pci,netdev=net-a,id=nic-a,mac=02:00:00:00:00:01,csum=off,gso=off,romfile=,bus=port1,addr=0x0 -S")
	want := likeOurs{accel: "tcg,thread=multi", cpu: "max", memory: "size=131080K", card: ",csum=off,gso=off,romfile="}
	if diff := cmp.Diff(want, pickOptions(args), cmp.AllowUnexported(likeOurs{})); diff != "" {
		t.Error(diff)
	}
}

func TestGap(t *testing.T) {
	all, err := parseAnswers("PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n" +
		"[1700000000.010000] 64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=0.5 ms\n" +
		"[1700000000.020000] 64 bytes from 10.0.0.1: icmp_seq=2 ttl=64 time=0.5 ms\n" +
		"[1700000000.500000] From 10.0.0.2 icmp_seq=3 Destination Host Unreachable\n" +
		"[1700000000.100000] 64 bytes from 10.0.0.1: icmp_seq=9 ttl=64 time=0.5 ms\n" +
		"[1700000001.100000] 64 bytes from 10.0.0.1: icmp_seq=10 ttl=64 time=0.5 ms\n")
	if err != nil || len(all) != 4 {
		t.Fatalf("%d answers, %v", len(all), err)
	}
	begin := time.Unix(1700000000, 0)
	cases := map[string]struct {
		from, to, want time.Duration // 0: an error
	}{
		"the first three": {0, 110 * time.Millisecond, 80 * time.Millisecond},
		"all":             {0, 1200 * time.Millisecond, time.Second},
		"silent at last":  {0, 500 * time.Millisecond, 400 * time.Millisecond},
		"nothing":         {2 * time.Second, 3 * time.Second, 0},
	}
	for name, c := range cases {
		got, err := all.gap(begin.Add(c.from), begin.Add(c.to))
		if got != c.want || (err == nil) != (c.want != 0) {
			t.Errorf("%s: %s, %v; want %s", name, got, err, c.want)
		}
	}
}
