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

// Install puts a link to the program into the directory of plugins for every plugin that it holds.
func Install(ctx context.Context, program, dir string) error {
	out, err := exec.CommandContext(ctx, program, "list").Output()
	if err != nil {
		return fmt.Errorf("install the CNI plugins of other networks: %s: %w", program, err)
	}
	for _, name := range strings.Fields(string(out)) {
		if err := Link(program, dir, name); err != nil {
			return err
		}
	}
	return nil
}

// Link makes a program the plugin of a name. What somebody else has put there under that name stays.
func Link(program, dir, name string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("install the CNI plugin %s: %w", name, err)
	}
	path := filepath.Join(dir, name)
	if target, err := os.Readlink(path); err == nil && target != program {
		if err := os.Remove(path); err != nil { // of an earlier place of the program
			return fmt.Errorf("install the CNI plugin %s: %w", name, err)
		}
	}
	if err := os.Symlink(program, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("install the CNI plugin %s: %w", name, err)
	}
	return nil
}
