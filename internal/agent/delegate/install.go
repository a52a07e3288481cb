package delegate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Program is the name of the program that holds the plugins that come with the agent.
const Program = "patchbay-cni-plugins"

// Install puts the program into the directory of plugins, with a link to it for every plugin that it holds. What somebody else has put
// there under such a name stays.
func Install(ctx context.Context, program, dir string) error {
	out, err := exec.CommandContext(ctx, program, "list").Output()
	if err != nil {
		return fmt.Errorf("install the CNI plugins of other networks: %s: %w", program, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("install the CNI plugins of other networks: %w", err)
	}
	for _, name := range strings.Fields(string(out)) {
		path := filepath.Join(dir, name)
		if target, err := os.Readlink(path); err == nil && target != program {
			if err := os.Remove(path); err != nil { // of an earlier place of the program
				return err
			}
		}
		if err := os.Symlink(program, path); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("install the CNI plugin %s: %w", name, err)
		}
	}
	return nil
}
