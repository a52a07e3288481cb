package seed

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// CloudConfig is the part of cloud-init's "#cloud-config" that this guest carries out.
type CloudConfig struct {
	Hostname     Text      `json:"hostname"`
	FQDN         Text      `json:"fqdn"`
	User         Text      `json:"user"` // name of the default user
	Users        []User    `json:"-"`
	Password     Text      `json:"password"` // of the default user
	Chpasswd     Chpasswd  `json:"chpasswd"`
	Keys         []string  `json:"ssh_authorized_keys"`
	WriteFiles   []File    `json:"write_files"`
	BootCommands []Command `json:"bootcmd"` // at every boot
	Commands     []Command `json:"runcmd"`  // once per instance

	RawUsers []json.RawMessage `json:"users"`
}

// User is an account to make.
type User struct {
	Name     Text     `json:"name"`
	Keys     []string `json:"ssh_authorized_keys"`
	Plain    Text     `json:"plain_text_passwd"`
	Hashed   Text     `json:"hashed_passwd"`
	Passwd   Text     `json:"passwd"` // hashed too
	Password Text     `json:"-"`      // plain or hashed, as found
}

// Chpasswd sets passwords, either as lines "user:password" or as a list of users.
type Chpasswd struct {
	List  json.RawMessage `json:"list"`
	Users []struct {
		Name     Text `json:"name"`
		Password Text `json:"password"`
	} `json:"users"`
}

// File is one of write_files.
type File struct {
	Path        string `json:"path"`
	Content     string `json:"content"`
	Encoding    string `json:"encoding"`
	Owner       string `json:"owner"`
	Permissions Text   `json:"permissions"`
	Append      bool   `json:"append"`
}

// Data is the file's content, decoded.
func (f File) Data() ([]byte, error) {
	switch f.Encoding {
	case "", "text/plain":
		return []byte(f.Content), nil
	case "b64", "base64":
		return base64.StdEncoding.DecodeString(strings.TrimSpace(f.Content))
	}
	return nil, fmt.Errorf("write_files %s: encoding %q is unknown; use b64 or none", f.Path, f.Encoding)
}

// Command is a command line for the shell, or a list of arguments.
type Command []string

// UnmarshalJSON turns a string into a call of the shell.
func (c *Command) UnmarshalJSON(data []byte) error {
	var line string
	if json.Unmarshal(data, &line) == nil {
		*c = Command{"/bin/sh", "-c", line}
		return nil
	}
	var words []Text
	if err := json.Unmarshal(data, &words); err != nil {
		return fmt.Errorf("a command is neither a line nor a list of words: %s", data)
	}
	for _, w := range words {
		*c = append(*c, string(w))
	}
	return nil
}

// ParseUserData reads user-data. A script ("#!") becomes one command that runs once per instance.
func ParseUserData(data []byte) (CloudConfig, error) {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return CloudConfig{}, nil
	case bytes.HasPrefix(data, []byte("#!")):
		const script = "/var/lib/guestd/user-data-script"
		return CloudConfig{
			WriteFiles: []File{{Path: script, Content: string(data), Permissions: "0700"}},
			Commands:   []Command{{script}},
		}, nil
	case !bytes.HasPrefix(data, []byte("#cloud-config")):
		return CloudConfig{}, fmt.Errorf("user-data begins with neither #cloud-config nor #!; this guest reads no other form")
	}
	var out CloudConfig
	if err := yaml.Unmarshal(data, &out); err != nil {
		return CloudConfig{}, fmt.Errorf("user-data: %w", err)
	}
	for _, raw := range out.RawUsers {
		user, err := parseUser(raw)
		if err != nil {
			return CloudConfig{}, err
		}
		if user.Name != "default" {
			out.Users = append(out.Users, user)
		}
	}
	return out, nil
}

// parseUser reads a user, or a mere name.
func parseUser(raw json.RawMessage) (User, error) {
	var name string
	if json.Unmarshal(raw, &name) == nil {
		return User{Name: Text(name)}, nil
	}
	var u User
	if err := json.Unmarshal(raw, &u); err != nil {
		return User{}, fmt.Errorf("users: %w", err)
	}
	u.Password = Text(first(u.Hashed, u.Passwd, u.Plain))
	return u, nil
}

// Passwords returns pairs of user and password from both forms of chpasswd.
func (c Chpasswd) Passwords() ([][2]string, error) {
	var out [][2]string
	for _, u := range c.Users {
		out = append(out, [2]string{string(u.Name), string(u.Password)})
	}
	if c.List == nil {
		return out, nil
	}
	var lines []string
	var block string
	if json.Unmarshal(c.List, &block) == nil {
		lines = strings.Split(block, "\n")
	} else if err := json.Unmarshal(c.List, &lines); err != nil {
		return nil, fmt.Errorf("chpasswd: list is neither lines nor a list: %w", err)
	}
	for _, l := range lines {
		if user, password, ok := strings.Cut(strings.TrimSpace(l), ":"); ok {
			out = append(out, [2]string{user, password})
		}
	}
	return out, nil
}
