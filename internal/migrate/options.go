package migrate

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
	migrationsv1 "kubevirt.io/api/migrations/v1alpha1"
)

// Published defaults of a KubeVirt object that says nothing.
const (
	defaultPerCluster             = 5
	defaultPerNode                = 2
	defaultCompletionPerGiB       = 150 // seconds
	defaultProgressTimeout        = 150 // seconds
	defaultDowntimeMS             = 300
	unlimited               int64 = 100 << 30 // bytes/s; QEMU's own default is 128 MiB/s
)

// Limits bound how many migrations go on at the same time.
type Limits struct{ PerCluster, PerNode int }

// LimitsOf reads the limits; nil means the defaults.
func LimitsOf(c *virtv1.MigrationConfiguration) Limits {
	l := Limits{PerCluster: defaultPerCluster, PerNode: defaultPerNode}
	if c != nil && c.ParallelMigrationsPerCluster != nil {
		l.PerCluster = int(*c.ParallelMigrationsPerCluster)
	}
	if c != nil && c.ParallelOutboundMigrationsPerNode != nil {
		l.PerNode = int(*c.ParallelOutboundMigrationsPerNode)
	}
	return l
}

// Options are what one migration may do. The agents read them from the instance, where the controller has written them.
type Options struct {
	Bandwidth        int64 // bytes/s; 0 is unlimited
	AutoConverge     bool  // the guest may be slowed down
	PostCopy         bool  // the guest may run on the target before its memory is there
	Disrupt          bool  // the guest may be paused to come to an end
	Plain            bool  // no TLS
	CompletionPerGiB int64 // seconds; 0 is no limit
	ProgressTimeout  int64 // seconds; 0 is no limit
	DowntimeMS       int64 // that the guest may stand still
}

// OptionsOf reads the options that a migration was begun with.
func OptionsOf(ms *virtv1.VirtualMachineInstanceMigrationState) Options {
	c := &virtv1.VMIMConfigurationOptions{}
	if ms.VMIMConfigurationOptions != nil {
		c = ms.VMIMConfigurationOptions
	}
	o := Options{CompletionPerGiB: defaultCompletionPerGiB, ProgressTimeout: defaultProgressTimeout, DowntimeMS: defaultDowntimeMS}
	if q := c.BandwidthPerMigration; q != nil {
		o.Bandwidth = q.Value()
	}
	if n := c.CompletionTimeoutPerGiB; n != nil {
		o.CompletionPerGiB = *n
	}
	if n := c.ProgressTimeout; n != nil {
		o.ProgressTimeout = *n
	}
	if n := c.MaxDowntimeMs; n != nil {
		o.DowntimeMS = int64(*n)
	}
	o.AutoConverge, o.PostCopy, o.Plain = isTrue(c.AllowAutoConverge), isTrue(c.AllowPostCopy), isTrue(c.DisableTLS)
	o.Disrupt = o.PostCopy || isTrue(c.AllowWorkloadDisruption)
	return o
}

// Parameters are QEMU's at the beginning. Its estimate of the downtime is rough, so the limit starts low; Monitor raises it. What a guest
// waits for after post-copy has begun comes at once, whatever the bandwidth.
func (o Options) Parameters() map[string]any {
	bandwidth := o.Bandwidth
	if bandwidth <= 0 {
		bandwidth = unlimited
	}
	return map[string]any{"max-bandwidth": bandwidth, "max-postcopy-bandwidth": bandwidth, "downtime-limit": min(firstDowntimeMS, o.DowntimeMS)}
}

// effective is what the cluster's configuration and a policy make of a migration, with every value said.
func effective(c *virtv1.MigrationConfiguration, policy *migrationsv1.MigrationPolicy) *virtv1.VMIMConfigurationOptions {
	e := &virtv1.VMIMConfigurationOptions{
		AllowAutoConverge: new(false), AllowPostCopy: new(false), CompletionTimeoutPerGiB: new(int64(defaultCompletionPerGiB)),
		ProgressTimeout: new(int64(defaultProgressTimeout)), UnsafeMigrationOverride: new(false), DisableTLS: new(false),
	}
	if c != nil {
		override(&e.AllowAutoConverge, c.AllowAutoConverge)
		override(&e.AllowPostCopy, c.AllowPostCopy)
		override(&e.AllowWorkloadDisruption, c.AllowWorkloadDisruption)
		override(&e.BandwidthPerMigration, c.BandwidthPerMigration)
		override(&e.CompletionTimeoutPerGiB, c.CompletionTimeoutPerGiB)
		override(&e.ProgressTimeout, c.ProgressTimeout)
		override(&e.MaxDowntimeMs, c.MaxDowntimeMs)
		override(&e.UnsafeMigrationOverride, c.UnsafeMigrationOverride)
		override(&e.DisableTLS, c.DisableTLS)
	}
	if policy != nil {
		p := policy.Spec
		override(&e.AllowAutoConverge, p.AllowAutoConverge)
		override(&e.AllowPostCopy, p.AllowPostCopy)
		override(&e.BandwidthPerMigration, p.BandwidthPerMigration)
		override(&e.CompletionTimeoutPerGiB, p.CompletionTimeoutPerGiB)
		override(&e.MaxDowntimeMs, p.MaxDowntimeMs)
		override(&e.AllowWorkloadDisruption, p.AllowWorkloadDisruption)
		if isTrue(p.AllowPostCopy) && p.AllowWorkloadDisruption == nil {
			e.AllowWorkloadDisruption = new(true)
		}
	}
	if e.AllowWorkloadDisruption == nil {
		e.AllowWorkloadDisruption = new(isTrue(e.AllowPostCopy))
	}
	return e
}

func override[T any](to **T, from *T) {
	if from != nil {
		*to = new(*from)
	}
}

// matching is the policy that a machine's migrations follow; nil when none matches. The one with the most matching labels wins,
// then the one with more labels of the machine, then the first by name.
func matching(policies []migrationsv1.MigrationPolicy, vmi *virtv1.VirtualMachineInstance, namespace *corev1.Namespace) *migrationsv1.MigrationPolicy {
	var found []migrationsv1.MigrationPolicy
	for _, p := range policies {
		s := p.Spec.Selectors
		if s == nil || s.NamespaceSelector == nil && s.VirtualMachineInstanceSelector == nil {
			continue
		}
		if has(vmi.Labels, s.VirtualMachineInstanceSelector) && (len(s.NamespaceSelector) == 0 || namespace != nil && has(namespace.Labels, s.NamespaceSelector)) {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return nil
	}
	best := slices.MinFunc(found, func(a, b migrationsv1.MigrationPolicy) int {
		x, y := a.Spec.Selectors, b.Spec.Selectors
		return cmp.Or(
			cmp.Compare(len(y.NamespaceSelector)+len(y.VirtualMachineInstanceSelector), len(x.NamespaceSelector)+len(x.VirtualMachineInstanceSelector)),
			cmp.Compare(len(y.VirtualMachineInstanceSelector), len(x.VirtualMachineInstanceSelector)),
			cmp.Compare(a.Name, b.Name))
	})
	return &best
}

func has(labels map[string]string, wanted migrationsv1.LabelSelector) bool {
	for k, v := range wanted {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func isTrue(b *bool) bool { return b != nil && *b }
