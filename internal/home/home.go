// Package home says where in a cluster Patchbay's own objects are. It must not know what is in them.
package home

import "sigs.k8s.io/controller-runtime/pkg/client"

// Namespace holds what Patchbay itself needs in a cluster, and the definitions that pods may name without a namespace.
const Namespace = "patchbay-system"

// KubeVirt is the object with the settings that are in force.
var KubeVirt = client.ObjectKey{Namespace: Namespace, Name: "kubevirt"}
