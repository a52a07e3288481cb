//go:build ignore

// A library that is loaded into a QEMU which awaits a guest by post-copy, before all others.
//
// Post-copy needs a userfaultfd. QEMU 7.2 gets it from the system call userfaultfd, which a pod may not make and which gives nothing
// to processes without privileges (vm.unprivileged_userfaultfd=0). The same thing comes, for the process that asks, from the device
// /dev/userfaultfd (Linux 6.1). The node's agent has opened that device; PATCHBAY_USERFAULT is the descriptor that QEMU has inherited.
// QEMU makes the call through syscall(3), so that is what the library answers; all other calls pass through. Newer QEMUs (8.1) try
// to open the device, which pods do not have, and then make the same call.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/ioctl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

// USERFAULTFD_IOC_NEW of Linux 6.1, which the headers of older kernels lack.
#define NEW_USERFAULTFD _IO(0xAA, 0x00)

long syscall(long number, ...)
{
	static long (*next)(long, ...);
	long a[6];
	va_list list;

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);

	const char *device = number == SYS_userfaultfd ? getenv("PATCHBAY_USERFAULT") : NULL;
	if (device)
		return ioctl(atoi(device), NEW_USERFAULTFD, a[0]);
	if (!next)
		next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
