// Package quickstart shows a new user a working cluster: it applies the example manifests, waits for the virtual machines,
// lets them talk to each other and through their Service, and prints what they said. What it prints is measured in the
// guests; it must never print an expectation.
package quickstart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Config says what to show.
type Config struct {
	REST      *rest.Config
	Manifests []byte // YAML documents: virtual machines and one Service of port 80
	Namespace string
	// Progress is told what is being waited for, in a few words; it may be nil.
	Progress func(string)
}

// poll is how often objects are looked at while waiting for them.
const poll = 200 * time.Millisecond

// Result is what was seen.
type Result struct {
	Machines []Machine `json:"machines"`
	Pings    []Ping    `json:"pings"`
	Service  Balance   `json:"service"`
	Seconds  float64   `json:"seconds"` // from applying the manifests to the last answer
}

// Machine is a virtual machine that runs.
type Machine struct {
	Name string   `json:"name"`
	Node string   `json:"node"`
	IPs  []string `json:"ips"`
}

// Run shows the example and returns what was seen. The manifests stay applied.
func Run(ctx context.Context, config Config) (Result, error) {
	begin := time.Now()
	d := &demo{Config: config}
	if d.Progress == nil {
		d.Progress = func(string) {}
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), virtv1.AddToScheme(scheme)); err != nil {
		return Result{}, err
	}
	var err error
	if d.api, err = client.New(config.REST, client.Options{Scheme: scheme}); err != nil {
		return Result{}, err
	}
	var result Result
	if err := d.apply(ctx); err != nil {
		return result, err
	}
	if result.Machines, err = d.waitForMachines(ctx); err != nil {
		return result, err
	}
	if result.Pings, result.Service, err = d.talk(ctx, result.Machines); err != nil {
		return result, err
	}
	result.Seconds = time.Since(begin).Seconds()
	return result, nil
}

type demo struct {
	Config
	api     client.Client
	names   []string // of the virtual machines
	service string
}

// apply makes the objects, or brings existing ones to what the manifests say.
func (d *demo) apply(ctx context.Context) error {
	d.Progress("applying the manifests")
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(d.Manifests), 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := documents.Decode(object); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("read the example manifests: %w", err)
		}
		object.SetNamespace(d.Namespace)
		err := d.api.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("patchbay-quickstart"), client.ForceOwnership)
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		switch object.GetKind() {
		case "VirtualMachine":
			d.names = append(d.names, object.GetName())
		case "Service":
			d.service = object.GetName()
		}
	}
	sort.Strings(d.names)
	if len(d.names) < 2 || d.service == "" {
		return errors.New("the example manifests must hold two virtual machines and a Service")
	}
	return nil
}

func (d *demo) waitForMachines(ctx context.Context) ([]Machine, error) {
	var machines []Machine
	for _, name := range d.names {
		machine, err := d.waitForMachine(ctx, name)
		if err != nil {
			return nil, err
		}
		machines = append(machines, machine)
	}
	return machines, nil
}

func (d *demo) waitForMachine(ctx context.Context, name string) (Machine, error) {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	vm := &virtv1.VirtualMachine{}
	for {
		vmi := &virtv1.VirtualMachineInstance{}
		key := client.ObjectKey{Namespace: d.Namespace, Name: name}
		err := d.api.Get(ctx, key, vmi)
		if err == nil && vmi.Status.Phase == virtv1.Running && len(vmi.Status.Interfaces) > 0 && vmi.Status.Interfaces[0].IP != "" {
			return Machine{Name: name, Node: vmi.Status.NodeName, IPs: vmi.Status.Interfaces[0].IPs}, nil
		}
		if err := d.api.Get(ctx, key, vm); err == nil {
			d.Progress(fmt.Sprintf("virtual machine %s: %s", name, vm.Status.PrintableStatus))
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return Machine{}, fmt.Errorf("virtual machine %s is %q and does not run; see `patchbay kubectl describe vmi %s`: %w",
				name, vm.Status.PrintableStatus, name, ctx.Err())
		}
	}
}

// Print writes the result for people.
func (r Result) Print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "VIRTUAL MACHINE\tNODE\tADDRESSES")
	for _, m := range r.Machines {
		fmt.Fprintf(w, "%s\t%s\t%s\n", m.Name, m.Node, strings.Join(m.IPs, ", "))
	}
	w.Flush()
	fmt.Fprintln(out)
	for _, p := range r.Pings {
		fmt.Fprintf(out, "%s\n", p)
	}
	fmt.Fprintf(out, "%s\n", r.Service)
}

// serviceIPs returns the cluster IPs of the example's Service.
func (d *demo) serviceIPs(ctx context.Context) ([]string, error) {
	service := &corev1.Service{}
	if err := d.api.Get(ctx, client.ObjectKey{Namespace: d.Namespace, Name: d.service}, service); err != nil {
		return nil, err
	}
	return service.Spec.ClusterIPs, nil
}
