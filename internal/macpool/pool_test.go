package macpool

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func first(uint64) uint64 { return 0 }

func mac(t testing.TB, s string) Address {
	t.Helper()
	a, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func within(t testing.TB, start, end string) Range {
	t.Helper()
	r, err := ParseRange(start, end)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func owner(name string) Owner { return Owner{Kind: "vm", Namespace: "ns", Name: name} }

func at(second int) time.Time { return time.Unix(int64(second), 0) }

func texts(all []Address) []string {
	var s []string
	for _, a := range all {
		s = append(s, a.String())
	}
	return s
}

func TestParseRange(t *testing.T) {
	for _, tc := range []struct{ start, end, problem string }{
		{"02:00:00:00:00:00", "02:00:00:ff:ff:ff", ""},
		{"00-16-3E-00-00-00", "00:16:3e:ff:ff:ff", ""}, // globally administered
		{"AA:00:00:00:00:00", "FA:FF:FF:FF:FF:FF", ""},
		{"02:00:00:00:00:00", "", "both or none of the KubeMacPool ranges needs to be configured"},
		{"", "02:00:00:00:00:00", "both or none of the KubeMacPool ranges needs to be configured"},
		{"02:00", "02:00:00:ff:ff:ff", "failed to parse rangeStart because the mac address is invalid"},
		{"02:00:00:00:00:00", "02:00:00:00:00:00:00:00", "failed to parse rangeEnd because the mac address is invalid"},
		{"02:00:00:00:00:05", "02:00:00:00:00:05",
			"failed to set mac address range: invalid range. Range end is lesser than or equal to its start. start: 02:00:00:00:00:05 end: 02:00:00:00:00:05"},
		{"02:ff:00:00:00:00", "02:00:ff:00:00:00",
			"failed to set mac address range: invalid range. Range end is lesser than or equal to its start. start: 02:ff:00:00:00:00 end: 02:00:ff:00:00:00"},
		{"01:00:00:00:00:00", "02:00:00:00:00:00",
			"failed to set RangeStart: invalid mac address. Multicast addressing is not supported. Unicast addressing must be used. The first octet is 0X1"},
		{"AA:00:00:00:00:00", "FD:FF:FF:FF:FF:FF",
			"failed to set RangeEnd: invalid mac address. Multicast addressing is not supported. Unicast addressing must be used. The first octet is 0XFD"},
	} {
		_, err := ParseRange(tc.start, tc.end)
		if got := fmt.Sprint(err); tc.problem == "" && err != nil || tc.problem != "" && got != tc.problem {
			t.Errorf("%s - %s: %v, want %q", tc.start, tc.end, err, tc.problem)
		}
	}
}

func TestPicksGoOnAndWrapAround(t *testing.T) {
	p := New(Config{Range: within(t, "02:00:00:00:00:00", "02:00:00:00:00:03"), Random: first})
	take := func(name string) string {
		got, err := p.Take(owner(name), p.Stamp(at(1), time.Time{}), []Wish{{NIC: "a"}})
		if err != nil {
			return err.Error()
		}
		return got[0].String()
	}
	var got []string
	got = append(got, take("1"), take("2"))
	p.Align(owner("1"), at(9), nil) // never stored; its address is not given again before the others
	got = append(got, take("3"), take("4"), take("5"))
	want := []string{"02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03", "02:00:00:00:00:01", "the range is full"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestMulticastIsLeftOut(t *testing.T) {
	p := New(Config{Range: Range{First: mac(t, "02:ff:ff:ff:ff:fe"), Last: mac(t, "04:00:00:00:00:01")}, Random: first})
	got, err := p.Take(owner("a"), at(1), []Wish{{NIC: "1"}, {NIC: "2"}, {NIC: "3"}, {NIC: "4"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"02:ff:ff:ff:ff:fe", "02:ff:ff:ff:ff:ff", "04:00:00:00:00:00", "04:00:00:00:00:01"}
	if diff := cmp.Diff(want, texts(got)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, err := p.Take(owner("b"), at(2), []Wish{{NIC: "1"}}); !errors.Is(err, ErrFull) {
		t.Errorf("from a full range: %v", err)
	}
}

func TestFailureHoldsNothing(t *testing.T) {
	p := New(Config{Range: within(t, "02:00:00:00:00:01", "02:00:00:00:00:02"), Random: first})
	if _, err := p.Take(owner("a"), at(1), []Wish{{NIC: "1"}, {NIC: "2"}, {NIC: "3"}}); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if got, err := p.Take(owner("b"), at(2), []Wish{{NIC: "1"}, {NIC: "2"}}); err != nil || p.Held() != 2 {
		t.Errorf("after the failure: %v, %v, %d held", got, err, p.Held())
	}
}

func TestASharedAddressIsFreeWhenNobodyHasIt(t *testing.T) {
	p := New(Config{Range: within(t, "02:00:00:00:00:01", "02:00:00:00:00:02"), Random: first})
	wish := []Wish{{NIC: "1", MAC: mac(t, "02:00:00:00:00:01")}}
	for _, name := range []string{"a", "b"} {
		if _, err := p.Take(owner(name), at(1), wish); err != nil {
			t.Fatal(err)
		}
		p.Align(owner(name), at(1), map[string]Address{"1": wish[0].MAC})
	}
	p.Align(owner("a"), time.Time{}, nil)
	if got, err := p.Take(owner("c"), at(2), []Wish{{NIC: "1"}, {NIC: "2"}}); !errors.Is(err, ErrFull) {
		t.Errorf("gave away what b has: %v", texts(got))
	}
	p.Align(owner("b"), time.Time{}, nil)
	if _, err := p.Take(owner("c"), at(3), []Wish{{NIC: "1"}, {NIC: "2"}}); err != nil {
		t.Errorf("the address that nobody has any more: %v", err)
	}
}

func TestStrictPoolRefusesWhatOthersHave(t *testing.T) {
	p := New(Config{Range: within(t, "02:00:00:00:00:01", "02:00:00:00:00:09"), Random: first})
	outside := mac(t, "0e:00:00:00:00:01")
	p.Align(owner("a"), at(1), map[string]Address{"1": outside})
	if _, err := p.Take(owner("b"), at(2), []Wish{{NIC: "1", MAC: outside}}); err != nil {
		t.Errorf("a lenient pool: %v", err)
	}
	p.Align(owner("b"), at(2), nil)
	p.SetStrict(true)
	if _, err := p.Take(owner("b"), at(3), []Wish{{NIC: "1", MAC: outside}}); !errors.Is(err, ErrTaken) {
		t.Errorf("a strict pool: %v, want %v", err, ErrTaken)
	}
	if _, err := p.Take(owner("a"), at(4), []Wish{{NIC: "renamed", MAC: outside}}); err != nil {
		t.Errorf("its own address: %v", err)
	}
}

func TestPromises(t *testing.T) {
	one, two := mac(t, "02:00:00:00:00:01"), mac(t, "02:00:00:00:00:02")
	p := New(Config{Range: within(t, "02:00:00:00:00:01", "02:00:00:00:00:02"), Random: first})
	if _, err := p.Take(owner("a"), at(10), []Wish{{NIC: "n"}}); err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		what    string
		stored  time.Time
		nics    map[string]Address
		overdue int
		held    int
	}{
		{"an older state says nothing of the request", at(9), nil, 1, 1},
		{"stored: confirmed", at(10), map[string]Address{"n": one}, 0, 1},
		{"a NIC that nobody asked for is held too", at(10), map[string]Address{"n": one, "m": two}, 0, 2},
		{"gone", time.Time{}, nil, 0, 0},
	}
	for _, s := range steps {
		p.Align(owner("a"), s.stored, s.nics)
		if overdue, held := len(p.Overdue(at(11))), p.Held(); overdue != s.overdue || held != s.held {
			t.Errorf("%s: %d overdue and %d held, want %d and %d", s.what, overdue, held, s.overdue, s.held)
		}
	}
}

func TestDryRunHoldsNothing(t *testing.T) {
	p := New(Config{Range: within(t, "02:00:00:00:00:01", "02:00:00:00:00:02"), Random: first})
	if got, err := p.Preview(owner("a"), []Wish{{NIC: "1"}, {NIC: "2"}}); err != nil || len(got) != 2 || got[0] == got[1] || p.Held() != 0 {
		t.Errorf("%v, %v, %d held", got, err, p.Held())
	}
}

func TestStampsGrow(t *testing.T) {
	p := New(Config{Random: first})
	a := p.Stamp(at(100), time.Time{})
	b := p.Stamp(at(100), at(200))  // the clock was set back since that was stored
	c := p.Stamp(at(50), at(1<<40)) // nobody's clock
	if !b.After(a) || !b.After(at(200)) || !c.After(b) || c.After(at(1000)) {
		t.Errorf("stamps %v, %v, %v", a, b, c)
	}
}

// A nearly full range costs no more steps than an empty one; this would not end if it did.
func TestNearlyFullRange(t *testing.T) {
	u := newUsed()
	const size = 1 << 24
	for a := Address(0); a < size; a++ {
		u.add(a)
	}
	for range 100_000 {
		if got := u.nextFree(0); got != size {
			t.Fatalf("next free after %d: %d", size, got)
		}
	}
	u.remove(size / 3)
	if got := u.nextFree(5); got != size/3 {
		t.Errorf("next free is %d, want %d", got, size/3)
	}
}

// One operation is the life of a machine with two NICs among 100,000 others: created, stored, deleted.
func BenchmarkPool(b *testing.B) {
	p := New(Config{Range: DefaultRange(1), Random: first})
	for n := range 50_000 {
		o := owner(fmt.Sprint("other-", n))
		got, err := p.Take(o, at(1), []Wish{{NIC: "a"}, {NIC: "b"}})
		if err != nil {
			b.Fatal(err)
		}
		p.Align(o, at(1), map[string]Address{"a": got[0], "b": got[1]})
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		o, stamp := owner("mine"), p.Stamp(at(2), time.Time{})
		got, err := p.Take(o, stamp, []Wish{{NIC: "a"}, {NIC: "b"}})
		if err != nil {
			b.Fatal(err)
		}
		p.Align(o, stamp, map[string]Address{"a": got[0], "b": got[1]})
		p.Align(o, time.Time{}, nil)
		p.Overdue(stamp)
	}
}
