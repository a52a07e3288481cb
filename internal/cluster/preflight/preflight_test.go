package preflight

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/namespace"
)

// text is the error's text, empty for none.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestWhatIsMissingIsNamedWithTheCommandThatHelps(t *testing.T) {
	cases := map[string]struct {
		missing []string
		want    string
	}{
		"nothing": {nil, ""},
		"one program": {[]string{"runc"},
			"this host lacks runc; install with: apt-get install --no-install-recommends runc"},
		"one package of several": {[]string{"ovs-vswitchd", "ovs-vsctl", "/usr/share/ovn/ovn-nb.ovsschema"},
			"this host lacks /usr/share/ovn/ovn-nb.ovsschema, ovs-vsctl, ovs-vswitchd; install with: apt-get install --no-install-recommends openvswitch-switch ovn-central"},
		"our own": {[]string{"/p/patchbay-kube", "/p/patchbay-cni"},
			"patchbay-kube and patchbay-cni must lie beside the patchbay program in /p; build with `make`, or unpack the download again"},
		"both": {[]string{"nft", "/p/patchbay-pause"},
			"this host lacks nft; install with: apt-get install --no-install-recommends nftables\n" +
				"patchbay-pause must lie beside the patchbay program in /p; build with `make`, or unpack the download again"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			lacks := func(file string) bool {
				for _, m := range c.missing {
					if m == file {
						return true
					}
				}
				return false
			}
			find := func(name string) string {
				if lacks(name) {
					return ""
				}
				return "/usr/sbin/" + name
			}
			_, err := programs("/p/patchbay", find, func(path string) bool { return !lacks(path) })
			if diff := cmp.Diff(c.want, text(err)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestDirectory(t *testing.T) {
	long := "/srv/" + strings.Repeat("x", 70)
	cases := map[string]struct{ home, dir, want string }{
		"usual":       {"/var/lib/patchbay", "/var/lib/patchbay/default", ""},
		"below run":   {"/run/x", "/run/x/a", "PATCHBAY_HOME cannot lie below /run, which the nodes do not see; choose another directory"},
		"like run":    {"/runs", "/runs/a", ""},
		"logs itself": {"/var/log", "/var/log/a", "PATCHBAY_HOME cannot lie below /var/log, which the nodes do not see; choose another directory"},
		"too long": {long, long + "/default",
			"the path " + long + "/default is 27 bytes too long for the sockets below it; choose a shorter --name or set PATCHBAY_HOME to a shorter directory"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, text(checkDirectory(c.home, c.dir))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMemory(t *testing.T) {
	got, err := availableMemory("MemTotal:       24684092 kB\nMemAvailable:   22012620 kB\n")
	if got != 21496 || err != nil {
		t.Errorf("got %d, %v", got, err)
	}
	if _, err := availableMemory("MemTotal: 1 kB\n"); err == nil {
		t.Error("an answer without MemAvailable")
	}
	if err := enoughMemory(1400, 2); err != nil {
		t.Error(err)
	}
	want := "1000 MiB of memory are free, and a cluster of 2 nodes needs 1400 MiB; free some, or use fewer --nodes"
	if diff := cmp.Diff(want, text(enoughMemory(1000, 2))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestInotify(t *testing.T) {
	if err := enoughInotify(128, 94, 2); err != nil {
		t.Error(err)
	}
	want := "this host allows 128 inotify instances, 95 are in use, and a cluster of 2 nodes needs 34; allow more with: sysctl -w fs.inotify.max_user_instances=1024"
	if diff := cmp.Diff(want, text(enoughInotify(128, 95, 2))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	before := usedInotify()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// Other programs may end and begin meanwhile; this one's instance is there in any case.
	if used := usedInotify(); used == 0 {
		t.Errorf("no instance is found, and there were %d before", before)
	}
}

func TestATakenPort(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	want := fmt.Sprintf("port %d on 127.0.0.1 is taken (listen tcp 127.0.0.1:%d: bind: address already in use); choose another with --api-port", port, port)
	if diff := cmp.Diff(want, text(checkPort(port))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	listener.Close()
	if err := checkPort(port); err != nil {
		t.Error(err)
	}
}

func TestANameThatLivesElsewhere(t *testing.T) {
	c := layout.Cluster{Home: t.TempDir(), Name: fmt.Sprintf("pf%d", os.Getpid())}
	if err := checkNamespaces(c, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := namespace.CreateNetwork(c.Node(2).Namespace()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = namespace.DeleteNetwork(c.Node(2).Namespace()) })
	err := checkNamespaces(c, 2)
	if err == nil || !strings.Contains(err.Error(), "choose another --name") || !strings.Contains(err.Error(), c.Node(2).Namespace()) {
		t.Errorf("got %v", err)
	}
	if err := checkNamespaces(c, 1); err != nil {
		t.Errorf("a smaller cluster does not clash: %v", err)
	}
}

func TestProgramsAreFoundInSystemDirectories(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if path := findProgram("mount"); !filepath.IsAbs(path) {
		t.Errorf("mount is found at %q", path)
	}
	if path := findProgram("no-such-program"); path != "" {
		t.Errorf("found %q", path)
	}
}
