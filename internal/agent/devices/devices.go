// Package devices offers devices of the node to pods: it announces each to the kubelet as an extended resource, and a pod that
// requests the resource gets the device. What works is checked here and only here. The package does not decide which pods
// request a device.
package devices

import (
	"patchbay/internal/qemu"
)

// Device is a device that pods may request.
type Device struct {
	Resource string // the extended resource by which pods request it
	Path     string // of the device, on the node and in the pod
	Count    int    // how many pods may have it at the same time
	// Check says why the device does not work on this node; nil when it does.
	Check func() error
}

// kvmCount is how many machines of a node may use KVM. The kernel has no limit of its own; this one is above the pods that a
// kubelet runs.
const kvmCount = 1000

// KVM is the device with which the node's processor executes guest code.
func KVM() Device {
	return Device{Resource: string(qemu.KVMResource), Path: kvmPath, Count: kvmCount, Check: CheckKVM}
}
