// Package launcher is the first process of a VM's pod. It waits for the agent's Start on a unix socket, prepares disks and the
// cloud-init seed, runs QEMU with the descriptors it was given, and ends with it. It runs without any capability and knows nothing
// of Kubernetes. It stays small: the standard library only.
//
// How it ends: with 0 when the guest powered off, with QEMU's exit code or 128 plus the number of the signal that killed it otherwise,
// with 143 when the guest did not power down in the time it has after SIGTERM. When the launcher is killed QEMU is killed too.
package launcher
