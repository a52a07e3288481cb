package launcher

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// ConfinedCommand is the launcher's first argument when it is to become a program by Confined.
const ConfinedCommand = "confined"

// Numbers of the kernel that package syscall lacks.
const (
	prSetNoNewPrivs = 38
	prSetSeccomp    = 22
	filterMode      = 2
	loadNumber      = syscall.BPF_LD | syscall.BPF_W | syscall.BPF_ABS // of the system call, at the start of seccomp's data
	returnAllow     = 0x7fff0000
	returnError     = 0x00050000 // with the error in the lower half: none
)

// idle are the calls by which a program builds a sandbox around itself.
var idle = []uint32{syscall.SYS_UNSHARE, syscall.SYS_MOUNT, syscall.SYS_UMOUNT2, syscall.SYS_PIVOT_ROOT}

// Confined becomes a program that insists on building a sandbox around itself, which no pod may do: a pod is one already, and user
// namespaces are the part of the kernel that it must not reach. The calls for it do nothing and succeed: of two filters that turn
// a call into an error the later one chooses the error, and ours chooses none. The program can do nothing that it could not without.
//
// It returns only when it fails.
func Confined(path string, argv []string) error {
	runtime.LockOSThread() // the filter is the thread's, and the program inherits it from the thread that runs it
	filter := []syscall.SockFilter{{Code: loadNumber}}
	for i, number := range idle {
		filter = append(filter, syscall.SockFilter{Code: syscall.BPF_JMP | syscall.BPF_JEQ | syscall.BPF_K, Jt: uint8(len(idle) - i), K: number})
	}
	filter = append(filter,
		syscall.SockFilter{Code: syscall.BPF_RET | syscall.BPF_K, K: returnAllow},
		syscall.SockFilter{Code: syscall.BPF_RET | syscall.BPF_K, K: returnError})
	program := syscall.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("give up new privileges: %w", errno)
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetSeccomp, filterMode, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	if err := syscall.Exec(path, argv, os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}
