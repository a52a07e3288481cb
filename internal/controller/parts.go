package controller

import (
	"context"
	"crypto/tls"
	"fmt"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	multiv1beta1 "github.com/k8snetworkplumbingwg/multi-networkpolicy/pkg/apis/k8s.cni.cncf.io/v1beta1"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	virtv1 "kubevirt.io/api/core/v1"
	migrationsv1 "kubevirt.io/api/migrations/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	hcov1beta1 "patchbay/api/hco/v1beta1"
	nmstatev1 "patchbay/api/nmstate/v1"
	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/api/policies"
	wbv1alpha1 "patchbay/api/whereabouts/v1alpha1"
	"patchbay/internal/admission"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/home"
	"patchbay/internal/hyperconverged"
	"patchbay/internal/network"
	"patchbay/internal/network/reclaim"
	"patchbay/internal/subresource"
	"patchbay/internal/vm"
	"patchbay/internal/volume"
)

// Parts is everything that a controller does. A new job is a package that knows nothing of this one, a function here that
// hands it what it needs, and a line in this list.
func Parts() []Part {
	return []Part{
		{"policies", addPolicies},
		{"configuration", addConfiguration},
		{"admission", addAdmission},
		{"subresources", addSubresources},
		{"virtual machines", addMachines},
		{"metrics", addMetrics},
		{"network", addNetwork},
		{"addresses", addAddresses},
		{"tenancy", addTenancy},
		{"volumes", addVolumes},
		{"node networks", addNodeNetworks},
	}
}

// newScheme holds the API types that the parts read and write.
func newScheme() *apiruntime.Scheme {
	s := apiruntime.NewScheme()
	for _, add := range []func(*apiruntime.Scheme) error{clientgoscheme.AddToScheme, virtv1.AddToScheme, migrationsv1.AddToScheme, hcov1beta1.AddToScheme, ovnv1.AddToScheme, nadv1.AddToScheme, ipamclaimsv1alpha1.AddToScheme, nmstatev1.AddToScheme, wbv1alpha1.AddToScheme, multiv1beta1.AddToScheme} {
		_ = add(s) // adds to a map; cannot fail
	}
	return s
}

// addPolicies gives the API server the rules that it keeps by itself.
func addPolicies(_ context.Context, h *Host) error {
	return h.Manager.Add(manager.RunnableFunc(func(ctx context.Context) error { return policies.Apply(ctx, h.REST) }))
}

// addConfiguration keeps the objects in which the administrator's decisions are read.
func addConfiguration(_ context.Context, h *Host) error {
	return hyperconverged.SetupWithManager(h.Manager, h.Direct)
}

// addAdmission serves the webhooks and registers them; until then nothing asks them, so no object is refused for want of us.
func addAdmission(_ context.Context, h *Host) error {
	policy := admission.PolicyOf(h.Manager.GetClient(), home.KubeVirt)
	macs, err := newMACPool(h)
	if err != nil {
		return err
	}
	evictions := vm.Evictions{Client: h.Direct, Config: h.machines()}
	server := admission.NewServer(admission.Config{Policy: policy, Reader: h.Manager.GetClient(), Settings: h.Settings, MACs: macs, Evict: evictions.Evict})
	h.Mux.Handle(admission.Prefix, server)
	return h.Manager.Add(manager.RunnableFunc(func(ctx context.Context) error {
		return server.Install(ctx, h.REST, "https://"+h.Listen.String(), h.Authority)
	}))
}

func addSubresources(ctx context.Context, h *Host) error {
	kube, err := kubernetes.NewForConfig(h.REST)
	if err != nil {
		return err
	}
	callers, err := subresource.FrontProxy(ctx, kube)
	if err != nil {
		return err
	}
	server := subresource.NewServer(subresource.Config{
		Client:        h.Direct,
		Authenticator: callers,
		AgentTLS:      &tls.Config{Certificates: []tls.Certificate{h.Certificate}, RootCAs: h.Roots, MinVersion: tls.VersionTLS12},
		Log:           h.Log.With("part", "subresources"),
	})
	for _, path := range subresource.Paths() {
		h.Mux.Handle(path, server)
	}
	return h.Manager.Add(manager.RunnableFunc(func(ctx context.Context) error {
		err := subresource.Install(ctx, h.Direct, subresource.Target{Address: h.Listen, Authority: h.Authority})
		if err != nil {
			return fmt.Errorf("is the API server's aggregation layer on? %w", err)
		}
		return nil
	}))
}

func addMachines(_ context.Context, h *Host) error {
	return vm.SetupWithManager(h.Manager, h.machines())
}

// machines is what the administrator says of machines.
func (h *Host) machines() vm.Config {
	return vm.Config{LauncherImage: h.Settings.LauncherImage, Cluster: func() *virtv1.KubeVirt {
		kv := &virtv1.KubeVirt{}
		if err := h.Manager.GetClient().Get(context.Background(), home.KubeVirt, kv); err != nil {
			return nil // not made yet: the defaults
		}
		return kv
	}}
}

func addNetwork(_ context.Context, h *Host) error {
	n, err := network.AddToManager(h.Manager, network.Config{
		Settings: h.Settings, Rows: h.Rows, Chassis: h.Southbound, Log: h.Log.With("part", "network"), ManagedTap: managedTap(h),
	})
	if err != nil {
		return err
	}
	h.Refused, h.Carried = append(h.Refused, n.Report), n.Running
	return nil
}

// addAddresses takes addresses back whose owners are gone.
func addAddresses(_ context.Context, h *Host) error {
	return reclaim.New(reclaim.Config{
		Client: h.Manager.GetClient(), Direct: h.Manager.GetAPIReader(), Namespace: home.Namespace, Grace: reclaim.Grace,
		Log: h.Log.With("part", "addresses"),
	}).AddToManager(h.Manager)
}

func addVolumes(_ context.Context, h *Host) error {
	cluster, err := layout.New(h.Settings.ClusterName)
	if err != nil {
		return err
	}
	return volume.SetupWithManager(h.Manager, volume.Config{NodesDir: cluster.Path("nodes")})
}
