// Package guest_test boots the guests that "make image" built, in plain QEMU on a network of the test's own, and checks
// what the rest of the project relies on: how they get addresses, read their seeds and let themselves be reached and stopped.
package guest_test
