package lifecycle

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

// nics writes networks and interfaces in short: "blue", "blue:down", "blue=other-nad", "default" for the pod network.
func nics(texts ...string) *virtv1.VirtualMachineInstanceSpec {
	spec := &virtv1.VirtualMachineInstanceSpec{}
	for _, text := range texts {
		text, state, _ := strings.Cut(text, ":")
		name, nad, renamed := strings.Cut(text, "=")
		if !renamed {
			nad = name + "-nad"
		}
		nic := virtv1.Interface{Name: name, State: virtv1.InterfaceState(state)}
		network := virtv1.Network{Name: name}
		switch name {
		case "default":
			network.Pod, nic.Masquerade = &virtv1.PodNetwork{}, &virtv1.InterfaceMasquerade{}
		case "plugin":
			network.Multus, nic.Binding = &virtv1.MultusNetwork{NetworkName: nad}, &virtv1.PluginBinding{Name: "l2bridge"}
		default:
			network.Multus, nic.Bridge = &virtv1.MultusNetwork{NetworkName: nad}, &virtv1.InterfaceBridge{}
		}
		spec.Networks = append(spec.Networks, network)
		spec.Domain.Devices.Interfaces = append(spec.Domain.Devices.Interfaces, nic)
	}
	return spec
}

func TestPlanInterfaces(t *testing.T) {
	for name, c := range map[string]struct {
		running  *virtv1.VirtualMachineInstanceSpec
		template *virtv1.VirtualMachineInstanceSpec
		plugged  []string // interfaces with a status
		migrates bool
		want     *virtv1.VirtualMachineInstanceSpec
		restart  string
	}{
		"nothing":                            {running: nics("default"), template: nics("default"), want: nics("default")},
		"plug":                               {running: nics("default"), template: nics("default", "blue"), want: nics("default", "blue")},
		"plug as absent":                     {running: nics("default"), template: nics("default", "blue:absent"), want: nics("default")},
		"plug a plugin's":                    {running: nics("default"), template: nics("default", "plugin"), want: nics("default")},
		"fill the slots":                     {running: nics("default", "a"), template: nics("default", "a", "b", "c"), want: nics("default", "a", "b", "c")},
		"beyond the slots":                   {running: nics("default", "a"), template: nics("default", "a", "b", "c", "d"), want: nics("default", "a", "b", "c"), restart: "interface d waits for a restart: all 4 slots for network interfaces are taken"},
		"pod network comes":                  {running: nics("blue"), template: nics("blue", "default"), want: nics("blue"), restart: textRestartRequired},
		"unplug":                             {running: nics("default", "blue"), template: nics("default", "blue:absent"), plugged: []string{"blue"}, want: nics("default", "blue:absent")},
		"still plugged":                      {running: nics("default", "blue:absent"), template: nics("default", "blue:absent"), plugged: []string{"blue"}, want: nics("default", "blue:absent")},
		"unplugged":                          {running: nics("default", "blue:absent"), template: nics("default", "blue:absent"), want: nics("default")},
		"absent is for good":                 {running: nics("default", "blue:absent"), template: nics("default", "blue"), plugged: []string{"blue"}, want: nics("default", "blue:absent")},
		"link down":                          {running: nics("default"), template: nics("default:down"), want: nics("default:down")},
		"link up":                            {running: nics("default:down"), template: nics("default:up"), want: nics("default:up")},
		"removed while plugged":              {running: nics("default", "blue"), template: nics("default"), want: nics("default", "blue"), restart: textRestartRequired},
		"network changes, it migrates":       {running: nics("default", "blue"), template: nics("default", "blue=red-nad"), migrates: true, want: nics("default", "blue=red-nad")},
		"network changes, it cannot migrate": {running: nics("default", "blue"), template: nics("default", "blue=red-nad"), want: nics("default", "blue"), restart: textRestartRequired},
	} {
		t.Run(name, func(t *testing.T) {
			vmi := instance(virtv1.Running)
			vmi.Spec = *c.running
			if c.migrates {
				vmi = instance(virtv1.Running, [3]string{"LiveMigratable", "True"})
				vmi.Spec = *c.running
			}
			for _, p := range c.plugged {
				vmi.Status.Interfaces = append(vmi.Status.Interfaces, virtv1.VirtualMachineInstanceNetworkInterface{Name: p})
			}
			got := planInterfaces(c.template, vmi)
			if diff := cmp.Diff(c.want.Domain.Devices.Interfaces, got.interfaces); diff != "" {
				t.Errorf("interfaces:\n%s", diff)
			}
			if diff := cmp.Diff(c.want.Networks, got.networks); diff != "" {
				t.Errorf("networks:\n%s", diff)
			}
			if got.restart != c.restart {
				t.Errorf("restart %q, want %q", got.restart, c.restart)
			}
		})
	}
}

func TestChangedInterfaceNeedsRestart(t *testing.T) {
	vmi := instance(virtv1.Running)
	vmi.Spec = *nics("default")
	template := nics("default")
	template.Domain.Devices.Interfaces[0].MacAddress = "02:00:00:00:00:01"
	if got := planInterfaces(template, vmi); got.restart != textRestartRequired {
		t.Errorf("restart %q, want %q", got.restart, textRestartRequired)
	}
}

func TestRestartReason(t *testing.T) {
	cpu := func(sockets, most uint32) virtv1.VirtualMachineInstanceSpec {
		return virtv1.VirtualMachineInstanceSpec{Domain: virtv1.DomainSpec{CPU: &virtv1.CPU{Sockets: sockets, MaxSockets: most}}}
	}
	zone := virtv1.VirtualMachineInstanceSpec{NodeSelector: map[string]string{"zone": "a"}}
	tolerant := virtv1.VirtualMachineInstanceSpec{Tolerations: []corev1.Toleration{{Key: "gpu"}}}
	for name, c := range map[string]struct {
		started, now virtv1.VirtualMachineInstanceSpec
		stage        bool
		want         string
	}{
		"equal":             {},
		"interfaces":        {now: *nics("blue")},
		"placement, live":   {now: zone},
		"toleration, live":  {now: tolerant},
		"placement, staged": {now: zone, stage: true, want: textRestartRequired},
		"fewer sockets":     {started: cpu(2, 8), now: cpu(1, 8), want: textFewerSockets},
		"too many sockets":  {started: cpu(2, 4), now: cpu(5, 4), want: textTooManySockets},
		"more sockets":      {started: cpu(2, 4), now: cpu(3, 4), want: textRestartRequired},
		"host name":         {now: virtv1.VirtualMachineInstanceSpec{Hostname: "other"}, want: textRestartRequired},
	} {
		t.Run(name, func(t *testing.T) {
			if got := restartReason(Settings{LiveUpdate: !c.stage}, &c.started, &c.now); got != c.want {
				t.Errorf("reason %q, want %q", got, c.want)
			}
		})
	}
}

func TestSyncNetworksKeepsWhatOthersAppended(t *testing.T) {
	vmi := instance(virtv1.Running)
	vmi.Namespace = "shop"
	vmi.Spec = *nics("blue")
	const mesh = `{"name":"istio-cni","namespace":"default"}`
	const blue = `{"interface":"pod16477688c0e","name":"blue-nad","namespace":"shop"}`
	for name, c := range map[string]struct{ before, after string }{
		"none":         {"", `[{"name":"blue-nad","namespace":"shop","interface":"pod16477688c0e"}]`},
		"a mesh's":     {"[" + mesh + "]", "[" + blue + "," + mesh + "]"},
		"up to date":   {"[ " + blue + ", " + mesh + " ]", "[ " + blue + ", " + mesh + " ]"},
		"kept claim":   {`[{"interface":"pod16477688c0e","ipam-claim-reference":"vm.blue","name":"blue-nad","namespace":"shop"}]`, `[{"interface":"pod16477688c0e","ipam-claim-reference":"vm.blue","name":"blue-nad","namespace":"shop"}]`},
		"another form": {"istio-cni", "istio-cni"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{}
			pod.Annotations = map[string]string{nadv1.NetworkAttachmentAnnot: c.before}
			s := &vmiStep{view: VMIView{Settings: Settings{}}, vmi: vmi}
			s.syncNetworks(pod)
			if diff := cmp.Diff(c.after, pod.Annotations[nadv1.NetworkAttachmentAnnot]); diff != "" {
				t.Errorf("annotation:\n%s", diff)
			}
		})
	}
}
