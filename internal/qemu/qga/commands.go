package qga

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
)

// Info is the agent's own description.
type Info struct {
	Version  string    `json:"version"`
	Commands []Command `json:"supported_commands"`
}

// Command is one command that the agent knows.
type Command struct {
	Name    string `json:"name"`
	Enabled bool   `json:"enabled"`
}

// Missing lists those of the wanted commands that the agent does not carry out.
func (i Info) Missing(wanted ...string) []string {
	var missing []string
	for _, name := range wanted {
		if !slices.Contains(i.Commands, Command{Name: name, Enabled: true}) {
			missing = append(missing, name)
		}
	}
	return missing
}

// Interface is a network interface as the guest sees it.
type Interface struct {
	Name      string    `json:"name"`
	MAC       string    `json:"hardware-address"`
	Addresses []Address `json:"ip-addresses"`
}

// Address is an address of an interface.
type Address struct {
	IP     string `json:"ip-address"`
	Type   string `json:"ip-address-type"` // ipv4 or ipv6
	Prefix int    `json:"prefix"`
}

// OS is the guest's operating system.
type OS struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	PrettyName    string `json:"pretty-name"`
	Version       string `json:"version"`
	VersionID     string `json:"version-id"`
	KernelRelease string `json:"kernel-release"`
	KernelVersion string `json:"kernel-version"`
	Machine       string `json:"machine"`
}

// Timezone is the guest's time zone.
type Timezone struct {
	Zone   string `json:"zone"`
	Offset int    `json:"offset"` // seconds east of UTC
}

// User is somebody logged in.
type User struct {
	Name      string  `json:"user"`
	Domain    string  `json:"domain"`     // Windows
	LoginTime float64 `json:"login-time"` // seconds since 1970
}

// Filesystem is a mounted file system.
type Filesystem struct {
	Name       string `json:"name"`
	Mountpoint string `json:"mountpoint"`
	Type       string `json:"type"`
	UsedBytes  int64  `json:"used-bytes"`
	TotalBytes int64  `json:"total-bytes"`
	Disks      []Disk `json:"disk"`
}

// Disk is a disk under a file system.
type Disk struct {
	Serial  string `json:"serial"`
	BusType string `json:"bus-type"`
	Device  string `json:"dev"`
}

// Info asks which commands the agent carries out.
func (c *Client) Info(ctx context.Context) (info Info, err error) {
	err = c.Execute(ctx, "guest-info", nil, &info)
	return info, err
}

// Interfaces lists the guest's network interfaces.
func (c *Client) Interfaces(ctx context.Context) (list []Interface, err error) {
	err = c.Execute(ctx, "guest-network-get-interfaces", nil, &list)
	return list, err
}

// OS describes the guest's operating system.
func (c *Client) OS(ctx context.Context) (os OS, err error) {
	err = c.Execute(ctx, "guest-get-osinfo", nil, &os)
	return os, err
}

// Hostname is the guest's own name.
func (c *Client) Hostname(ctx context.Context) (string, error) {
	var reply struct {
		Name string `json:"host-name"`
	}
	err := c.Execute(ctx, "guest-get-host-name", nil, &reply)
	return reply.Name, err
}

// Timezone is the guest's time zone.
func (c *Client) Timezone(ctx context.Context) (zone Timezone, err error) {
	err = c.Execute(ctx, "guest-get-timezone", nil, &zone)
	return zone, err
}

// Users lists who is logged in.
func (c *Client) Users(ctx context.Context) (list []User, err error) {
	err = c.Execute(ctx, "guest-get-users", nil, &list)
	return list, err
}

// Filesystems lists the mounted file systems.
func (c *Client) Filesystems(ctx context.Context) (list []Filesystem, err error) {
	err = c.Execute(ctx, "guest-get-fsinfo", nil, &list)
	return list, err
}

// FreezeStatus is thawed or frozen.
func (c *Client) FreezeStatus(ctx context.Context) (status string, err error) {
	err = c.Execute(ctx, "guest-fsfreeze-status", nil, &status)
	return status, err
}

// Freeze stops writes to the guest's file systems and tells how many; Thaw lets them go on.
func (c *Client) Freeze(ctx context.Context) (count int, err error) {
	err = c.Execute(ctx, "guest-fsfreeze-freeze", nil, &count)
	return count, err
}

func (c *Client) Thaw(ctx context.Context) (count int, err error) {
	err = c.Execute(ctx, "guest-fsfreeze-thaw", nil, &count)
	return count, err
}

// ShutdownMode is what guest-shutdown does.
type ShutdownMode string

const (
	Powerdown ShutdownMode = "powerdown"
	Reboot    ShutdownMode = "reboot"
)

// Shutdown asks the guest to power down or reboot. It returns when the request is on its way: a guest that obeys does not answer.
func (c *Client) Shutdown(ctx context.Context, mode ShutdownMode) error {
	return c.tell(ctx, "guest-shutdown", map[string]any{"mode": mode})
}

// SetPassword sets the password of a user of the guest.
func (c *Client) SetPassword(ctx context.Context, user, password string) error {
	args := map[string]any{"username": user, "password": base64.StdEncoding.EncodeToString([]byte(password)), "crypted": false}
	return c.Execute(ctx, "guest-set-user-password", args, nil)
}

// SetAuthorizedKeys replaces the SSH keys that a user of the guest accepts.
func (c *Client) SetAuthorizedKeys(ctx context.Context, user string, keys []string) error {
	if keys == nil {
		keys = []string{} // the agent wants a list, also when it is empty
	}
	args := map[string]any{"username": user, "keys": keys, "reset": true}
	return c.Execute(ctx, "guest-ssh-add-authorized-keys", args, nil)
}

// NotSupported says that err is the agent's answer to a command that it does not know or that its policy forbids.
func NotSupported(err error) bool {
	var refused *Error
	return errors.As(err, &refused) && refused.Class == "CommandNotFound"
}

// ExecResult is how a command in the guest ended.
type ExecResult struct {
	ExitCode       int
	Stdout, Stderr []byte
}

// Exec runs a program in the guest and waits for its end. input is its standard input.
func (c *Client) Exec(ctx context.Context, path string, args []string, input []byte) (ExecResult, error) {
	request := map[string]any{"path": path, "arg": args, "capture-output": true}
	if args == nil {
		delete(request, "arg")
	}
	if input != nil {
		request["input-data"] = base64.StdEncoding.EncodeToString(input)
	}
	var started struct {
		PID int `json:"pid"`
	}
	if err := c.Execute(ctx, "guest-exec", request, &started); err != nil {
		return ExecResult{}, err
	}
	return c.waitExec(ctx, path, started.PID)
}

// WriteFile makes or replaces a file in the guest.
func (c *Client) WriteFile(ctx context.Context, path string, content []byte) error {
	var handle int
	if err := c.Execute(ctx, "guest-file-open", map[string]any{"path": path, "mode": "w"}, &handle); err != nil {
		return err
	}
	err := c.writeHandle(ctx, handle, content)
	if closeErr := c.Execute(ctx, "guest-file-close", map[string]any{"handle": handle}, nil); closeErr != nil {
		err = errors.Join(err, closeErr)
	}
	if err != nil {
		return fmt.Errorf("write %s in the guest: %w", path, err)
	}
	return nil
}

// chunk is how many bytes one guest-file-write carries; the agent keeps a whole command in memory.
const chunk = 1 << 20

func (c *Client) writeHandle(ctx context.Context, handle int, content []byte) error {
	for len(content) > 0 {
		part := content[:min(chunk, len(content))]
		args := map[string]any{"handle": handle, "buf-b64": base64.StdEncoding.EncodeToString(part)}
		var written struct {
			Count int `json:"count"`
		}
		if err := c.Execute(ctx, "guest-file-write", args, &written); err != nil {
			return err
		}
		if written.Count <= 0 {
			return errors.New("the guest agent wrote nothing")
		}
		content = content[min(written.Count, len(content)):]
	}
	return nil
}
