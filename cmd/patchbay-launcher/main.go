// Command patchbay-launcher is the first process of a VM's pod: it prepares disks and runs QEMU as the node's agent tells it.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"patchbay/internal/launcher"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/launcher/userfault"
)

// QEMU dies with the thread that starts it. The main thread lives as long as the process.
func init() { runtime.LockOSThread() }

func main() { os.Exit(run()) }

func run() int {
	// One of these runs beside every VM: memory counts, speed does not.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(25)
	if len(os.Args) > 2 && os.Args[1] == launcher.ConfinedCommand {
		err := launcher.Confined(os.Args[2], os.Args[2:])
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Disks, sockets and the seed are for this user and the agent alone.
	syscall.Umask(0o077)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	code, err := launcher.New(launcher.Config{
		RunDir: protocol.RunDir, DiskDir: protocol.DiskDir, VolumesDir: protocol.VolumesDir,
		QEMU: "/usr/bin/qemu-system-x86_64", QEMUImg: "/usr/bin/qemu-img", Passt: "/usr/bin/passt", UserFault: userfault.Library, Log: log,
	}).Run(ctx)
	if err != nil {
		log.Error("the launcher cannot begin", "error", err)
	}
	return code
}
