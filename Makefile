# make            builds everything
# make quickstart two virtual machines on two nodes and a Service over them, from nothing
# All targets may be interrupted and run again; what is up to date is left alone.

.PHONY: all quickstart build test chapter9 bench lint generate image deps clean FORCE
all: build image

# One set of flags for building and testing, so that nothing is compiled twice. No trace of this host in programs.
export GOFLAGS := -trimpath -buildvcs=false
ldflags := -ldflags='-s -w'
# What the nodes and the API server say of themselves.
kube_version = $(shell go list -m -f '{{.Version}}' k8s.io/kubernetes)
kube_version_package := k8s.io/component-base/version
kube_ldflags = -ldflags='-s -w -X $(kube_version_package).gitVersion=$(kube_version) -X $(kube_version_package).gitMajor=$(word 1,$(subst ., ,$(kube_version:v%=%))) -X $(kube_version_package).gitMinor=$(word 2,$(subst ., ,$(kube_version)))'

# Small programs that run inside pods or start often: static, nothing but themselves.
static := $(filter-out patchbay patchbay-kube,$(notdir $(wildcard cmd/*)))

gotestsum := bin/tools/gotestsum-v1.13.0
$(gotestsum):
	GOBIN=$(CURDIR)/bin/tools go install gotest.tools/gotestsum@v1.13.0
	mv bin/tools/gotestsum $@

deps:
	@hack/deps

build: bin/patchbay-kube bin/containerd-shim-runc-v2 bin/patchbay-cni-plugins $(static:%=bin/%) bin/patchbay

bin/patchbay: FORCE
	go build $(ldflags) -o $@ ./cmd/patchbay

$(static:%=bin/%): bin/%: FORCE
	CGO_ENABLED=0 go build $(ldflags) -o $@ ./cmd/$*

# The Kubernetes engine takes minutes to compile the first time; it holds no logic of ours.
bin/patchbay-kube: $(wildcard cmd/patchbay-kube/*.go) go.mod go.sum
	go build $(kube_ldflags) -o $@ ./cmd/patchbay-kube
	@touch $@

bin/containerd-shim-runc-v2: go.mod go.sum
	CGO_ENABLED=0 go build $(ldflags) -o $@ github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
	@touch $@

# The published CNI plugins in one program, see hack/cniplugins.
bin/patchbay-cni-plugins: hack/cniplugins/main.go go.mod go.sum
	go run ./hack/cniplugins $@
	@touch $@

# Needs root: files in images have owners.
image: bin/patchbay-launcher
	go run ./guest/build

quickstart: deps build image
	bin/patchbay quickstart

# Packages first, then the trees that start clusters and guests, two at a time: each waits for something most of the time.
# What failed and what was skipped comes last.
test: deps build image bin/virtctl $(gotestsum)
	go test -C tools ./...
	$(gotestsum) --format pkgname-and-test-fails -- -p 2 -timeout 20m $$(go list ./... | grep -v '^patchbay/test/')
	$(gotestsum) --format pkgname-and-test-fails -- -p 2 -timeout 90m ./test/...

# The published command line client, of a module of its own: it does not compile in ours. Used by tests only.
bin/virtctl: test/clients/go.mod test/clients/go.sum
	go build -C test/clients -o ../../$@ kubevirt.io/kubevirt/cmd/virtctl
	@touch $@

# The numbered statements, as a table: pass, fail, not covered.
chapter9: deps build image
	go test -json -timeout 90m ./test/chapter9 | go run ./test/chapter9/report

bench: deps build image
	go run ./test/bench

staticcheck := bin/tools/staticcheck-v0.8.2
lint: $(staticcheck)
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "run gofmt -w on:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	$(staticcheck) ./...

$(staticcheck):
	GOBIN=$(CURDIR)/bin/tools go install honnef.co/go/tools/cmd/staticcheck@v0.8.2
	mv bin/tools/staticcheck $@

generate:
	go generate ./...

clean:
	rm -rf bin build
