package launcher_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"patchbay/internal/agent/podlab"
	"patchbay/internal/launcher/client"
	"patchbay/internal/launcher/launchertest"
	"patchbay/internal/launcher/protocol"
)

// passtStart is a machine whose NIC waits for passt. The pod of podlab has no privilege for low ports.
func passtStart(p protocol.Passt) protocol.Start {
	s := start("passt", "-netdev", "stream,id=n,server=on,addr.type=unix,addr.path=/run/patchbay/"+protocol.PasstName, "-device", "virtio-net-pci,id=nic,netdev=n")
	s.Passt = &p
	return s
}

// passtArgs are for podlab's pod.
var passtArgs = []string{"--mtu", "1400", "--no-map-gw", "--interface", "eth0", "--address", podlab.PodV4.Addr().String(), "--netmask", "23",
	"--outbound-if4", "eth0", "--gateway", podlab.GatewayV4.String(), "--outbound-if6", "eth0", "--address", podlab.PodV6.Addr().String(), "--gateway", "fe80::1", "--dns", "none", "--search", "none"}

func passtPod(t *testing.T) (*podlab.Lab, *launchertest.Pod) {
	lab := podlab.New(t, podlab.PodV4, podlab.PodV6)
	return lab, launchertest.Start(t, launchertest.Config{Netns: lab.Pod.Path})
}

func open(t *testing.T, lab *podlab.Lab, port int) error {
	conn, err := lab.Client.Dial(t.Context(), "tcp", fmt.Sprintf("%s:%d", podlab.PodV4.Addr(), port))
	if err == nil {
		conn.Close()
	}
	return err
}

func TestPasstOpensPorts(t *testing.T) {
	for name, c := range map[string]struct {
		ports        protocol.Passt
		open, closed []int
	}{
		"listed": {protocol.Passt{TCP: []uint16{2222, 8080}, UDP: []uint16{5353}}, []int{2222, 8080}, []int{5353, 8081}},
		"udp":    {protocol.Passt{UDP: []uint16{5353}}, nil, []int{5353}},
		"all":    {protocol.Passt{Except: []uint16{2001}}, []int{1024, 2000, 8080}, []int{2001}},
	} {
		t.Run(name, func(t *testing.T) {
			lab, pod := passtPod(t)
			if out, err := lab.Pod.Run(t.Context(), "sysctl", "-q", "net.ipv4.ip_unprivileged_port_start=0"); err != nil {
				t.Fatal(out)
			}
			c.ports.Args = passtArgs
			run(t, pod, passtStart(c.ports))
			for _, port := range c.open {
				if err := open(t, lab, port); err != nil {
					t.Errorf("port %d: %v", port, err)
				}
			}
			for _, port := range c.closed {
				if err := open(t, lab, port); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("port %d: %v, want it refused", port, err)
				}
			}
		})
	}
}

// A pod in which passt cannot work is said so at the start, not by a guest without a network.
func TestPasstThatCannotStart(t *testing.T) {
	_, pod := passtPod(t)
	_, err := pod.Run.Start(t.Context(), passtStart(protocol.Passt{Args: []string{"--interface", "eth9"}, TCP: []uint16{2222}}), nil)
	var refusal *client.Refusal
	if !errors.As(err, &refusal) || !strings.Contains(refusal.Reason, "passt ended with code 1: Invalid interface name eth9") {
		t.Errorf("%v", err)
	}
	if code := pod.ExitCode(t); code == 0 {
		t.Error("the launcher ended as if all were well")
	}
}

func TestPasstComesBackAndEndsWithQEMU(t *testing.T) {
	lab, pod := passtPod(t)
	run(t, pod, passtStart(protocol.Passt{Args: passtArgs, TCP: []uint16{2222}}))
	old, err := pod.Child("passt")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var now int
	launchertest.Eventually(t, "another passt serves", func() error {
		if now, err = pod.Child("passt"); err != nil || now == old {
			return fmt.Errorf("passt is %d, was %d: %v", now, old, err)
		}
		return open(t, lab, 2222)
	})
	if _, err := pod.Run.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	pod.ExitCode(t)
	launchertest.Eventually(t, "passt has ended", func() error { return launchertest.Gone(now) })
}
