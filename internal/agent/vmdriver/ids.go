package vmdriver

import "patchbay/internal/qemu"

// Names that package qemu gives to devices.
const (
	agentChardev = qemu.AgentChardev
	agentPort    = "agent0"
)

func nicDevice(name string) string { return qemu.NICDevice(name) }
