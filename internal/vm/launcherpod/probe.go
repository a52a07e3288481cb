package launcherpod

import (
	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

// launcherStart is how long in seconds a launcher may take before the guest's own start, which a probe's author counts from.
const launcherStart = 10

// probe is the guest's probe as the kubelet runs it on the compute container: over the network it reaches the pod's address,
// inside the guest it goes through the launcher.
func probe(p *virtv1.Probe) *corev1.Probe {
	if p == nil {
		return nil
	}
	return &corev1.Probe{
		ProbeHandler:        handler(p.Handler),
		InitialDelaySeconds: p.InitialDelaySeconds + launcherStart,
		TimeoutSeconds:      p.TimeoutSeconds,
		PeriodSeconds:       p.PeriodSeconds,
		SuccessThreshold:    p.SuccessThreshold,
		FailureThreshold:    p.FailureThreshold,
	}
}

func handler(h virtv1.Handler) corev1.ProbeHandler {
	switch {
	case h.Exec != nil:
		command := append([]string{Program, "probe", "exec", "--"}, h.Exec.Command...)
		return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: command}}
	case h.GuestAgentPing != nil:
		return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{Program, "probe", "ping"}}}
	}
	return corev1.ProbeHandler{HTTPGet: h.HTTPGet.DeepCopy(), TCPSocket: h.TCPSocket.DeepCopy()}
}
