package launcherpod

import (
	"path/filepath"
	"testing"

	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// TestPodSecurity holds each pod against the Pod Security Standards as the API server's admission does.
func TestPodSecurity(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, pod := range buildScenes(t) {
		name = filepath.Base(name)
		t.Run(name, func(t *testing.T) {
			level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
			result := policy.AggregateCheckResults(evaluator.EvaluatePod(level, &pod.ObjectMeta, &pod.Spec))
			usesHostPath := name == "volumes" // hostDisk is a host path by definition: only "privileged" admits it
			if result.Allowed == usesHostPath {
				t.Errorf("restricted: allowed %v: %s", result.Allowed, result.ForbiddenDetail())
			}
		})
	}
}
