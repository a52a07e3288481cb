package credentials

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"patchbay/internal/qemu/qga"
)

// Guest is a guest's agent.
type Guest interface {
	SetAuthorizedKeys(ctx context.Context, user string, keys []string) error
	SetPassword(ctx context.Context, user, password string) error
	Exec(ctx context.Context, path string, args []string, input []byte) (qga.ExecResult, error)
}

// apply makes w true in the guest. A user who cannot be served does not keep the others from it.
func apply(ctx context.Context, guest Guest, w Wanted) error {
	var errs []error
	for _, user := range slices.Sorted(maps.Keys(w.Keys)) {
		if err := setKeys(ctx, guest, user, w.Keys[user]); err != nil {
			errs = append(errs, fmt.Errorf("set the SSH keys of user %q: %w", user, err))
		}
	}
	for _, user := range slices.Sorted(maps.Keys(w.Passwords)) {
		if err := guest.SetPassword(ctx, user, w.Passwords[user]); err != nil {
			errs = append(errs, fmt.Errorf("set the password of user %q: %w", user, err))
		}
	}
	return errors.Join(errs...)
}

// setKeys uses the agent's own command; one that is older than QEMU 5.2, or may not use it, can run a program instead.
func setKeys(ctx context.Context, guest Guest, user string, keys []string) error {
	err := guest.SetAuthorizedKeys(ctx, user, keys)
	if !qga.NotSupported(err) {
		return err
	}
	if !userName.MatchString(user) {
		return fmt.Errorf("%q cannot be a user's name", user)
	}
	input := strings.Join(append(slices.Clone(keys), ""), "\n")
	result, err := guest.Exec(ctx, "su", []string{"-s", "/bin/sh", "-c", writeKeys, user}, []byte(input))
	switch {
	case qga.NotSupported(err):
		return errors.New("the guest agent may neither set SSH keys nor run programs; allow guest-ssh-add-authorized-keys in its configuration")
	case err != nil:
		return err
	case result.ExitCode != 0:
		return fmt.Errorf("su in the guest ended with status %d: %s", result.ExitCode, firstLine(result.Stderr))
	}
	return nil
}

// writeKeys runs as the user and not as root: what the user may have linked in its home must not lead elsewhere.
const writeKeys = `umask 077; cd && mkdir -p .ssh && chmod 700 .ssh && cat >.ssh/authorized_keys.new && mv -f .ssh/authorized_keys.new .ssh/authorized_keys`

var userName = regexp.MustCompile(`^[a-zA-Z0-9_.][a-zA-Z0-9_.@-]*$`)

func firstLine(text []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	return line
}
