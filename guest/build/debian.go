package main

import (
	"os"
	"path"
	"path/filepath"
	"strings"

	"patchbay/internal/image"
)

// debian makes the guest that people know: systemd, cloud-init, OpenSSH, with Debian's full kernel, which has drivers for
// every disk and network card that a manifest may name.
func (b builder) debian(work string) error {
	stage, err := b.packages("kernel", []string{"linux-image-amd64", "busybox-static"})
	if err != nil {
		return err
	}
	kernel, err := findKernel(stage)
	if err != nil {
		return err
	}
	root, err := b.debianRoot(work, kernel)
	if err != nil {
		return err
	}
	_, bootModules, err := moduleList("guest/debian/modules.txt")
	if err != nil {
		return err
	}
	initrd, err := makeInitrd(work, kernel, bootModules)
	if err != nil {
		return err
	}
	out := filepath.Join(work, "debian.qcow2")
	d := disk{
		work: work, kernel: kernel.image(), initrd: initrd, cmdline: quick + " root=LABEL=debian-root systemd.show_status=false",
		root: root, label: "debian-root", bootMiB: 40, rootMiB: 2007, compressed: true,
	}
	if err := d.write(out); err != nil {
		return err
	}
	return b.containerDisk("debian", "patchbay.io/guest/debian:latest", out)
}

// debianRoot installs the packages into a directory, with our files and the kernel's modules.
func (b builder) debianRoot(work string, kernel *kernel) (string, error) {
	packages, err := list("guest/debian/packages.txt")
	if err != nil {
		return "", err
	}
	all, _, err := moduleList("guest/debian/modules.txt")
	if err != nil {
		return "", err
	}
	extra := image.NewTree() // copied in before the last step, which makes the modules' index
	if err := kernel.addModules(extra, all); err != nil {
		return "", err
	}
	for _, index := range []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"} {
		name := path.Join("/lib/modules", kernel.version, index)
		extra.Host(name, filepath.Join(kernel.root, name))
	}
	guestd, err := buildGuestd(work)
	if err != nil {
		return "", err
	}
	extra.Host("/usr/local/sbin/guestd", guestd)
	extraDir, root := filepath.Join(work, "extra"), filepath.Join(work, "root")
	if err := extract(extra, extraDir); err != nil {
		return "", err
	}
	_, err = run("mmdebstrap", "--variant=minbase", "--mode=root", "--components=main", "--include="+strings.Join(packages, ","),
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/i18n/*", "--dpkgopt=path-exclude=/usr/share/info/*",
		"--customize-hook=cp -r "+extraDir+"/lib/modules \"$1/lib/\" && cp "+extraDir+"/usr/local/sbin/guestd \"$1/usr/local/sbin/\"",
		"--customize-hook=guest/debian/customize \"$1\"",
		"bookworm", root)
	if err != nil {
		return "", err
	}
	return root, os.RemoveAll(extraDir)
}
