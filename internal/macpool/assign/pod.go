package assign

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"

	"patchbay/internal/machinepod"
	"patchbay/internal/macpool"
)

// PodOwner is a pod as an owner of addresses.
func PodOwner(namespace, name string) macpool.Owner {
	return macpool.Owner{Kind: kindPod, Namespace: namespace, Name: name}
}

// Attached says that a pod's networks are connected.
func Attached(pod *corev1.Pod) bool { return pod.Annotations[nadv1.NetworkStatusAnnot] != "" }

// PodAddresses is what the networks of a pod hold.
func PodAddresses(pod *corev1.Pod) map[string]macpool.Address {
	held := map[string]macpool.Address{}
	for i, s := range selections(pod) {
		if a, err := macpool.Parse(s.text("mac")); err == nil {
			held[s.key(pod.Namespace, i)] = a
		}
	}
	return held
}

// CompletePod fills in the addresses of a new pod's secondary networks. Only the long form of the annotation has room for them.
func (a *Assigner) CompletePod(ctx context.Context, pod *corev1.Pod, dryRun bool) (warnings []string, err error) {
	all := selections(pod)
	if len(all) == 0 || a.off() || Attached(pod) || machinepod.Is(pod) {
		return nil, nil
	}
	var wishes []macpool.Wish
	for i, s := range all {
		w := macpool.Wish{NIC: s.key(pod.Namespace, i)}
		if mac := s.text("mac"); mac != "" {
			if w.MAC, err = macpool.Parse(mac); err != nil {
				return nil, fmt.Errorf("invalid MAC address format for network %s: %s: %w", w.NIC, mac, err)
			}
		}
		wishes = append(wishes, w)
	}
	if !a.Ready(ctx) {
		return []string{"the MAC address pool is being rebuilt; the pod's secondary networks get addresses that are not from it"}, nil
	}
	granted, err := a.take(PodOwner(pod.Namespace, pod.Name), a.Pool.Stamp(a.Now(), time.Time{}), wishes, dryRun)
	if err != nil {
		return nil, fmt.Errorf("allocate MAC addresses to the pod: %w", err)
	}
	for i, g := range granted {
		if all[i].text("mac") == "" {
			all[i]["mac"], _ = json.Marshal(g.String()) // a string
		}
	}
	text, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	pod.Annotations[nadv1.NetworkAttachmentAnnot] = string(text)
	return nil, nil
}

// selection is one entry of the long form; fields that are not known here stay as they are.
type selection map[string]json.RawMessage

func (s selection) text(field string) string {
	var value string
	_ = json.Unmarshal(s[field], &value) // something else than a string is not ours to judge
	return value
}

// key names an entry; its place tells entries of one network apart.
func (s selection) key(namespace string, place int) string {
	if other := s.text("namespace"); other != "" {
		namespace = other
	}
	return namespace + "/" + s.text("name") + "/" + strconv.Itoa(place)
}

func selections(pod *corev1.Pod) []selection {
	text := strings.TrimSpace(pod.Annotations[nadv1.NetworkAttachmentAnnot])
	if !strings.HasPrefix(text, "[") {
		return nil
	}
	var all []selection
	if json.Unmarshal([]byte(text), &all) != nil {
		return nil // whoever reads the annotation says what is wrong with it
	}
	return all
}
