// Command guestd makes the tiny guest behave like a cloud image: "seed" carries out the cloud-init seed early at boot,
// "serve" runs the network and the services that tests talk to; "answer" runs the services alone, in a pod. Called as chpasswd it sets passwords, for the
// guest agent; called as udplisten it prints datagrams.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"patchbay/guest/guestd/netconfig"
	"patchbay/guest/guestd/nic"
	"patchbay/guest/guestd/provision"
	"patchbay/guest/guestd/services"
)

func main() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err := run(append([]string{filepath.Base(os.Args[0])}, os.Args[1:]...)); err != nil {
		slog.Error("guestd", "error", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if args[0] == "guestd" {
		args = args[1:]
	}
	switch {
	case len(args) > 0 && args[0] == "chpasswd":
		return chpasswd()
	case slices.Equal(args, []string{"seed"}):
		return applySeed()
	case slices.Equal(args, []string{"serve"}):
		return serve(ctx)
	case len(args) == 2 && args[0] == "answer":
		return withPort(ctx, args[1], answer)
	case len(args) == 2 && args[0] == "udplisten":
		return withPort(ctx, args[1], listenUDP)
	}
	return errors.New("usage: guestd seed | serve | answer PORT | udplisten PORT")
}

func withPort(ctx context.Context, arg string, f func(context.Context, int) error) error {
	port, err := strconv.ParseUint(arg, 10, 16)
	if err != nil {
		return fmt.Errorf("%q is not a port", arg)
	}
	err = f(ctx, int(port))
	if ctx.Err() != nil { // told to stop
		return nil
	}
	return err
}

// answer runs the services that need no guest.
func answer(ctx context.Context, port int) error {
	go background(func() error { return services.EchoTCP(ctx) })
	go background(func() error { return services.EchoUDP(ctx) })
	return services.HTTP(ctx, port, nic.Observe)
}

// listenUDP prints every datagram that arrives: who sent it, and its text.
func listenUDP(ctx context.Context, port int) error {
	return services.Datagrams(ctx, port, func(_ net.PacketConn, from net.Addr, data []byte) {
		fmt.Printf("%s %s\n", from, strings.TrimRight(string(data), "\n"))
	})
}

// chpasswd reads lines "user:password" as the tool of that name does; "-e" says that passwords are hashed, which their look says too.
func chpasswd() error {
	m := provision.Machine{Root: "/"}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		user, password, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			return errors.New("chpasswd: a line is not user:password")
		}
		if err := m.SetPassword(user, password); err != nil {
			return err
		}
	}
	return nil
}

func serve(ctx context.Context) error {
	config, err := readNetwork()
	if err != nil {
		slog.Error("the seed's network configuration is not used", "error", err)
	}
	manager := nic.NewManager(config, &nic.Resolver{Path: "/etc/resolv.conf"}, hostnameFromDHCP)
	go background(func() error { return runCommands(ctx, manager.Online()) })
	if err := services.PowerButton(powerOff); err != nil {
		slog.Warn("power button", "error", err)
	}
	go background(func() error { return services.HTTP(ctx, 80, manager.States) })
	go background(func() error { return services.EchoTCP(ctx) })
	go background(func() error { return services.EchoUDP(ctx) })
	if err := manager.Run(ctx); ctx.Err() == nil {
		return err
	}
	return nil
}

// background reports what ends early; the process itself lives on.
func background(f func() error) {
	if err := f(); err != nil {
		slog.Error("service ended", "error", err)
	}
}

func powerOff() {
	slog.Info("power button pressed")
	if err := exec.Command("/sbin/poweroff").Run(); err != nil {
		slog.Error("power off", "error", err)
	}
}

func readNetwork() (netconfig.Config, error) {
	data, err := os.ReadFile(networkFile)
	if errors.Is(err, os.ErrNotExist) || len(data) == 0 {
		return netconfig.Config{}, nil
	}
	if err != nil {
		return netconfig.Config{}, err
	}
	return netconfig.Parse(data)
}
