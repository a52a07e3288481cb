package link

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Setting is one kernel setting below /proc/sys/net, such as {"ipv6/conf/eth0/accept_ra", "0"}.
type Setting struct{ Key, Value string }

// ForDevice are settings of one device; keys are relative to conf/<device> of their family: "ipv4/rp_filter".
func ForDevice(device string, settings ...Setting) []Setting {
	out := make([]Setting, len(settings))
	for i, s := range settings {
		family, name, _ := strings.Cut(s.Key, "/")
		out[i] = Setting{family + "/conf/" + device + "/" + name, s.Value}
	}
	return out
}

// Set writes settings of the calling thread's network namespace; those that already hold are not written.
func Set(settings ...Setting) error {
	for _, s := range settings {
		path := filepath.Join("/proc/sys/net", s.Key)
		old, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(s.Key, "ipv6/") {
			continue // a kernel without IPv6
		}
		if err == nil && strings.TrimSpace(string(old)) == s.Value {
			continue
		}
		if err := os.WriteFile(path, []byte(s.Value), 0o644); err != nil {
			return fmt.Errorf("set net.%s to %s: %w", strings.ReplaceAll(s.Key, "/", "."), s.Value, err)
		}
	}
	return nil
}
