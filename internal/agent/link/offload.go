package link

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct {
	command uint32
	data    uint32
}

// interfaceRequest is struct ifreq with a pointer in its union, which is 24 bytes on 64-bit machines.
type interfaceRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// TxChecksumOff turns transmit checksum offload off (and with it segmentation offload) on a device of the calling thread's
// namespace. Userspace OVS does not complete partial checksums: with offload on, TCP hangs while ping works.
func TxChecksumOff(device string) error {
	if _, err := ethtool(device, unix.ETHTOOL_STXCSUM); err != nil {
		return fmt.Errorf("turn off checksum offload of %s: %w", device, err)
	}
	return nil
}

// TxChecksum says whether transmit checksum offload is on.
func TxChecksum(device string) (bool, error) {
	value, err := ethtool(device, unix.ETHTOOL_GTXCSUM)
	if err != nil {
		return false, fmt.Errorf("read checksum offload of %s: %w", device, err)
	}
	return value != 0, nil
}

// ethtool runs a command whose argument or answer is one number; the argument is 0. A device that lacks the feature answers 0.
func ethtool(device string, command uint32) (uint32, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(socket)
	value := ethtoolValue{command: command}
	request := interfaceRequest{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(socket), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 && !errors.Is(errno, unix.EOPNOTSUPP) {
		return 0, errno
	}
	return value.data, nil
}
