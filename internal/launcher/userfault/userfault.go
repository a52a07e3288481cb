// Package userfault holds the library that lets a QEMU without privileges receive a guest by post-copy, and compiles it. It runs nothing
// and opens nothing: the agent opens the device, the launcher loads the library.
package userfault

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

const (
	// Library is the library's path in the launcher's image.
	Library = "/userfault.so"
	// Variable is the environment variable that tells the library which descriptor is the open Device.
	Variable = "PATCHBAY_USERFAULT"
	// Device makes userfaultfds for whoever has it open. Linux has it since 6.1.
	Device = "/dev/userfaultfd"
)

//go:embed userfault.c
var source string

// Compile writes the library. The same compiler makes the same file everywhere.
func Compile(path string) error {
	gcc := exec.Command("gcc", "-x", "c", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-s",
		"-Wl,--build-id=none,-z,relro,-z,now,-z,noexecstack", "-o", path, "-")
	gcc.Stdin = strings.NewReader(source)
	if out, err := gcc.CombinedOutput(); err != nil {
		return fmt.Errorf("compile the library %s: %w %s", Library, err, out)
	}
	return os.Chmod(path, 0o755)
}
