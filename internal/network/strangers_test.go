package network

import (
	"fmt"
	"strings"
	"testing"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"patchbay/internal/podnetworks"
)

// made is a definition as a user-defined network makes it.
func made(kind, namespace, name, network, fields string) *nadv1.NetworkAttachmentDefinition {
	d, yes := definition(namespace, name, network, fields), true
	d.OwnerReferences = []metav1.OwnerReference{{APIVersion: "k8s.ovn.org/v1", Kind: kind, Name: name, UID: "made-by-a-test", Controller: &yes}}
	return d
}

// TestAStrangerDoesNotGetIn: a user of namespace red writes definitions that name blue's networks.
func TestAStrangerDoesNotGetIn(t *testing.T) {
	s := newTenancy(t)
	s.start()
	blue, red, pink := s.namespace("sblue", true), s.namespace("sred", true), s.namespace("spink", true)
	const secondary = `"topology":"layer2","subnets":"10.100.220.0/24"`
	shared := "cluster_udn_strangers"
	s.create(
		definition(red, "early", blue+"_data", secondary), // red's user is here before blue's network
		made("ClusterUserDefinedNetwork", blue, "strangers", shared, primaryFields),
		made("ClusterUserDefinedNetwork", pink, "strangers", shared, primaryFields),
		made("UserDefinedNetwork", blue, "data", blue+"_data", secondary),
	)
	s.create(podIn(blue, "web", "node-1", "k8s.v1.cni.cncf.io/networks", "data"), podIn(pink, "web", "node-1"))
	web := s.networks(blue, "web")
	if e := web[blue+"/strangers"]; ips(e) == "" || e.Role != podnetworks.Primary {
		t.Errorf("blue's pod has %+v", web)
	}
	if e := s.networks(pink, "web")[pink+"/strangers"]; e.Name != shared {
		t.Errorf("pink's pod has %+v, not blue's network", e)
	}
	s.said(red, "early", "the network belongs to somebody else")

	s.create(
		definition(red, "equal", shared, primaryFields),
		definition(red, "other", shared, strings.Replace(primaryFields, "10.20", "10.21", 1)),
		definition(red, "flat", shared, secondary),
		definition(red, "data", blue+"_data", secondary),
	)
	said := func() {
		t.Helper()
		for _, name := range []string{"equal", "other", "flat", "data"} {
			s.said(red, name, "the network belongs to somebody else")
		}
		for i, networks := range []string{"equal", "flat", "data", "early"} {
			pod := podIn(red, fmt.Sprint("thief-", i), "node-1", "k8s.v1.cni.cncf.io/networks", networks)
			s.create(pod)
			s.said(red, pod.Name, "cannot be used: network name")
			s.said(red, pod.Name, "but no primary network")
			s.delete(pod)
		}
		for _, line := range strings.Split(s.o.fake.Dump(), "\n") {
			if strings.Contains(line, red) {
				t.Errorf("the overlay has %q", line)
			}
		}
	}
	said()
	s.restart()
	said()
	if again := s.networks(blue, "web"); ips(again[blue+"/strangers"]) != ips(web[blue+"/strangers"]) || ips(again[blue+"/data"]) != ips(web[blue+"/data"]) {
		t.Errorf("blue's pod had %+v and has %+v", web, again)
	}
}
