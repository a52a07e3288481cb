package podnet

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
)

var equal = cmp.Options{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func record(uid, container string) Pod {
	return Pod{
		UID: types.UID(uid), Namespace: "red", Name: "web", ContainerID: container, Netns: "/run/netns/x",
		Interfaces: []Interface{{
			Name: "eth0", MAC: net.HardwareAddr{0x0a, 0x58, 10, 128, 0, 5}, MTU: 1400,
			IPs:      []netip.Prefix{netip.MustParsePrefix("10.128.0.5/23"), netip.MustParsePrefix("fd00:10:128::5/64")},
			Gateways: []netip.Addr{netip.MustParseAddr("10.128.0.1"), netip.MustParseAddr("fd00:10:128::1")},
			HostName: "pv0123456789ab", Port: "red_web",
		}},
	}
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, broken, err := OpenStore(dir)
	if err != nil || len(broken) > 0 {
		t.Fatal(err, broken)
	}
	return s
}

func TestRecordsSurviveARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pods")
	s := open(t, dir)
	for _, pod := range []Pod{record("u1", "c1"), record("u2", "c2"), record("u3", "c3")} {
		if err := s.Put(pod); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete("u2", "c2"); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	if diff := cmp.Diff([]Pod{record("u1", "c1"), record("u3", "c3")}, again.List(), equal); diff != "" {
		t.Errorf("records after a restart (-want +got):\n%s", diff)
	}
	if got, ok := again.Sandbox("c3"); !ok || got.UID != "u3" {
		t.Errorf("sandbox c3 belongs to %q, %v", got.UID, ok)
	}
}

func TestDeleteKeepsTheRecordOfANewerSandbox(t *testing.T) {
	s := open(t, t.TempDir())
	for _, pod := range []Pod{record("u1", "old"), record("u1", "new")} {
		if err := s.Put(pod); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete("u1", "old"); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.Get("u1"); !ok || got.ContainerID != "new" {
		t.Errorf("the record is %+v, %v; want sandbox new", got, ok)
	}
	if err := s.Delete("unknown", "x"); err != nil {
		t.Errorf("deleting what is not there: %v", err)
	}
}

func TestBrokenRecordsAreSetAside(t *testing.T) {
	dir := t.TempDir()
	foreign, err := json.Marshal(record("other", "c"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"u1.json": []byte("{"), "u2.json": foreign, ".u3.json-1": []byte("half")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, broken, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(broken) != 2 || len(s.List()) != 0 {
		t.Errorf("got %d records and complaints %v, want none and two", len(s.List()), broken)
	}
	if _, err := os.Stat(filepath.Join(dir, "u1.json.broken")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".u3.json-1")); !os.IsNotExist(err) {
		t.Errorf("the half written record is still there: %v", err)
	}
}

func TestPutRefusesUIDsThatAreNoFileName(t *testing.T) {
	s := open(t, t.TempDir())
	for _, uid := range []string{"", "../x"} {
		if err := s.Put(record(uid, "c")); err == nil {
			t.Errorf("UID %q was accepted", uid)
		}
	}
}
