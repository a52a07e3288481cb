package subresource

import (
	"runtime"
	"runtime/debug"

	apiversion "k8s.io/apimachinery/pkg/version"
)

// DefaultVersion is the release whose API we serve, the one of kubevirt.io/api in go.mod. Clients warn when it is not theirs.
const DefaultVersion = "v1.9.0"

func versionInfo(release string) apiversion.Info {
	info := apiversion.Info{
		GitVersion: release, GitTreeState: "clean", GoVersion: runtime.Version(), Compiler: runtime.Compiler,
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return info
	}
	for _, s := range build.Settings {
		switch s.Key {
		case "vcs.revision":
			info.GitCommit = s.Value
		case "vcs.time":
			info.BuildDate = s.Value
		}
	}
	return info
}
