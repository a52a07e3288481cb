package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/test/local"
)

const benchPods = 100

// measureCNI starts pods a few at a time, as a busy cluster would, and reads from the agents' logs what each CNI ADD took.
func measureCNI(ctx context.Context, b *bench) ([]row, error) {
	ns, err := b.namespace(ctx, "bench-cni")
	if err != nil {
		return nil, err
	}
	defer b.cluster.Client.Delete(context.WithoutCancel(ctx), ns)
	before, err := b.addTimes()
	if err != nil {
		return nil, err
	}
	const atOnce = 10
	for first := 0; first < benchPods; first += atOnce {
		for n := range atOnce {
			if err := b.cluster.Client.Create(ctx, toolboxPod(ns.Name, fmt.Sprintf("pod-%d", first+n), "")); err != nil {
				return nil, err
			}
		}
		if err := b.waitForPods(ctx, ns.Name, first+atOnce); err != nil {
			return nil, err
		}
	}
	after, err := b.addTimes()
	if err != nil {
		return nil, err
	}
	times := after[len(before):]
	if len(times) < benchPods {
		return nil, fmt.Errorf("the agents logged %d CNI ADDs, want %d", len(times), benchPods)
	}
	slices.Sort(times)
	return []row{
		{Figure: fmt.Sprintf("CNI ADD p50 over %d pods", benchPods), Unit: "ms", Ours: percentile(times, 50), Goal: "100"},
		{Figure: fmt.Sprintf("CNI ADD p99 over %d pods", benchPods), Unit: "ms", Ours: percentile(times, 99), Goal: "500"},
	}, nil
}

func percentile(sorted []time.Duration, p int) float64 {
	at := (len(sorted)*p + 99) / 100
	return float64(sorted[min(at, len(sorted))-1].Microseconds()) / 1000
}

var addDone = regexp.MustCompile(`msg="CNI request done".*command=ADD.*took=(\S+)`)

// addTimes are the durations of all CNI ADDs so far, in the order of the logs.
func (b *bench) addTimes() ([]time.Duration, error) {
	var all []time.Duration
	for _, node := range b.cluster.Nodes {
		data, err := os.ReadFile(filepath.Join(b.cluster.Dir(), "logs", node+"-agent.log"))
		if err != nil {
			return nil, err
		}
		for _, match := range addDone.FindAllStringSubmatch(string(data), -1) {
			took, err := time.ParseDuration(match[1])
			if err != nil {
				return nil, err
			}
			all = append(all, took)
		}
	}
	return all, nil
}

func (b *bench) namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	return ns, b.cluster.Client.Create(ctx, ns)
}

func toolboxPod(namespace, name, node string) *corev1.Pod {
	grace := int64(0)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "toolbox", Image: "patchbay.io/guest/toolbox:latest", ImagePullPolicy: corev1.PullIfNotPresent,
				Command: []string{"sleep", "86400"},
			}},
		},
	}
	if node != "" {
		pod.Spec.NodeSelector = map[string]string{"kubernetes.io/hostname": node}
	}
	return pod
}

func (b *bench) waitForPods(ctx context.Context, namespace string, count int) error {
	return b.until(ctx, 2*time.Minute, func() error {
		var pods corev1.PodList
		if err := b.cluster.Client.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
			return err
		}
		ready := 0
		for _, pod := range pods.Items {
			if local.Ready(pod.Status.Conditions, corev1.PodReady) {
				ready++
			}
		}
		if ready < count {
			return fmt.Errorf("%d of %d pods are ready", ready, count)
		}
		return nil
	})
}

// until repeats check until it gives no error.
func (b *bench) until(ctx context.Context, limit time.Duration, check func() error) error {
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-bounded.Done():
			return errors.Join(bounded.Err(), err)
		}
	}
}
