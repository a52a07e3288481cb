package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"patchbay/internal/vmctl"
)

// sshFlags are those of the commands that become a program of OpenSSH.
type sshFlags struct {
	key     string
	user    string
	port    uint16
	options []string
}

func (s *sshFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&s.key, "identity", "i", "", "file of the private key")
	flags.StringVarP(&s.user, "login", "l", "", "account in the guest")
	flags.Uint16VarP(&s.port, "port", "p", 22, "port of the guest's SSH server")
	flags.StringArrayVar(&s.options, "option", nil, "option of ssh, KEY=VALUE, as in its configuration; may be repeated")
}

// command is the beginning of the program's command line.
func (s *sshFlags) command(f *vmFlags, program string, m vmctl.Name) ([]string, error) {
	tunnel, err := f.tunnelCommand(m, s.port)
	if err != nil {
		return nil, err
	}
	words := []string{program, "-o", "ProxyCommand=" + tunnel}
	if s.key != "" {
		words = append(words, "-i", s.key)
	}
	for _, option := range s.options {
		words = append(words, "-o", option)
	}
	return words, nil
}

// host is a machine's name for OpenSSH, which remembers its key by it.
func (s *sshFlags) host(login string, m vmctl.Name) string {
	host := "vm." + m.Name + "." + m.Namespace
	if name := cmp.Or(login, s.user); name != "" {
		host = name + "@" + host
	}
	return host
}

func newVMSSHCommand(f *vmFlags) *cobra.Command {
	var s sshFlags
	cmd := &cobra.Command{
		Use:   "ssh [USER@]MACHINE [-- COMMAND]",
		Short: "Log in to a virtual machine with SSH",
		Long: `Become the ssh of this host, connected through the cluster's API to the machine's own port on its node. It works on every network that the node can
reach the guest on, tenants' included, needs no Service, and needs what the guest needs: an account and its key.`,
		Example: `  patchbay vm ssh patchbay@web-01
  patchbay vm ssh patchbay@web-01 -i ~/.ssh/id_ed25519 -- uptime`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: f.completeLogin,
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := f.open(); err != nil { // which fills in the namespace
				return err
			}
			login, m, err := vmctl.ParseLogin(args[0], f.namespace)
			if err != nil {
				return err
			}
			words, err := s.command(f, "ssh", m)
			if err != nil {
				return err
			}
			return become("ssh", append(append(words, s.host(login, m)), args[1:]...))
		},
	}
	s.add(cmd)
	return cmd
}

func newVMCopyCommand(f *vmFlags) *cobra.Command {
	var (
		s         sshFlags
		recursive bool
		preserve  bool
	)
	cmd := &cobra.Command{
		Use:   "scp SOURCE DESTINATION",
		Short: "Copy files to or from a virtual machine",
		Long: `Become the scp of this host, connected as "patchbay vm ssh" is. One of source and destination is a file of a machine, [USER@]MACHINE:FILE, the other
one a file of this host. A file of this host whose name holds a colon is written ./NAME.`,
		Example: `  patchbay vm scp notes.txt patchbay@web-01:notes.txt
  patchbay vm scp -r patchbay@web-01:/var/log ./logs`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := f.open(); err != nil { // which fills in the namespace
				return err
			}
			from, to, err := vmctl.ParseCopy(args[0], args[1], f.namespace)
			if err != nil {
				return err
			}
			words, err := s.command(f, "scp", from.Or(to).Machine)
			if err != nil {
				return err
			}
			if recursive {
				words = append(words, "-r")
			}
			if preserve {
				words = append(words, "-p")
			}
			return become("scp", append(words, s.file(from), s.file(to)))
		},
	}
	s.add(cmd)
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "directories with all that is in them")
	cmd.Flags().BoolVar(&preserve, "preserve", false, "keep times and modes")
	return cmd
}

// file is a file for scp.
func (s *sshFlags) file(place vmctl.File) string {
	if !place.Remote() {
		return place.Path
	}
	return s.host(place.User, place.Machine) + ":" + place.Path
}

// completeLogin offers machines, with what is typed before the @.
func (f *vmFlags) completeLogin(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	login := word[:strings.LastIndexByte(word, '@')+1]
	names, directive := f.completeMachine(cmd, args, word)
	for n := range names {
		names[n] = login + names[n]
	}
	return names, directive
}

// tunnelCommand is the command line that connects standard input and output with a port of the guest.
func (f *vmFlags) tunnelCommand(m vmctl.Name, port uint16) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	words := []string{self, "vm", "port-forward", "--stdio", "vm/" + m.Name + "/" + m.Namespace, strconv.Itoa(int(port))}
	if f.kubeconfig != "" {
		words = append(words, "--kubeconfig", f.kubeconfig)
	} else {
		words = append(words, "--name", f.name)
	}
	for n, word := range words {
		words[n] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	return strings.Join(words, " "), nil
}

// become replaces this process by a program, so that terminals and signals work as with the program itself.
func become(program string, args []string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("%w; install it on this host", err)
	}
	return syscall.Exec(path, args, os.Environ())
}
