package controller

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// leaseName is the lease that the working controller holds.
const leaseName = "patchbay-controller"

// leaderLock makes the lock of the leader election. The identity is the host's and not the process's: a controller that was
// killed has its lease back at once, where another host waits until it runs out.
func leaderLock(config *rest.Config) (resourcelock.Interface, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name this host for the leader election: %w", err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return resourcelock.New(resourcelock.LeasesResourceLock, metav1.NamespaceSystem, leaseName,
		kube.CoreV1(), kube.CoordinationV1(), resourcelock.ResourceLockConfig{Identity: host})
}

// onlyOne waits until no other controller of this cluster runs on this host, which the election could not tell apart.
func onlyOne(ctx context.Context, c Config) (unlock func(), err error) {
	dir, err := os.Open(c.TLSDir)
	if err != nil {
		return nil, fmt.Errorf("open the controller's directory: %w", err)
	}
	for waiting := false; ; waiting = true {
		err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { dir.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			dir.Close()
			return nil, fmt.Errorf("lock %s: %w", c.TLSDir, err)
		}
		if !waiting {
			c.Log.Info("another controller of this cluster runs on this host; waiting until it ends", "directory", c.TLSDir)
		}
		select {
		case <-ctx.Done():
			dir.Close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
