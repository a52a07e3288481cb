package vmdriver

// Names that package qemu gives to devices.
const (
	agentChardev = "qga0"
	agentPort    = "qga0-port"
)

func nicDevice(name string) string { return "nic-" + name }
