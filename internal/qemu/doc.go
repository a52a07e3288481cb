// Package qemu turns a virtual machine instance into what the launcher needs to run it: the disks to prepare, the cloud-init
// seed and QEMU's arguments. It also decides where a NIC goes that is plugged while the guest runs.
//
// The package is pure: no files, no sockets, no clock. What it cannot know from the API object comes in Facts. Talking to a
// running QEMU is the job of the packages qmp (monitor) and qga (guest agent).
package qemu
