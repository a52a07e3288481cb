// Package migrate decides about live migrations. Step takes what is known of one migration and returns what is to be done next;
// Options, Monitor and Evict settle what a migration may do, when it takes too long, and what an eviction is answered. The package has no
// clock, client or goroutine. Who of two nodes may run a guest is not decided here, but between their agents (package vmstate).
package migrate
