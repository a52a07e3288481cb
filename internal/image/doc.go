// Package image makes container images out of files, without a container engine: it collects files in a Tree, finds the
// shared libraries that programs need, writes the result as an OCI archive that containerd, docker and podman import, and
// loads or pushes such archives. Equal input gives equal bytes: entries are sorted and carry one fixed time.
//
// It must not know what a guest or a launcher is; who builds one lists its files.
package image
