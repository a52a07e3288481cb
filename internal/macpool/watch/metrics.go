package watch

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// gauges are what monitoring reads about the pool.
type gauges struct {
	collisions *prometheus.GaugeVec
}

func newGauges() *gauges {
	g := &gauges{collisions: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "kmp_mac_collisions", Help: "Number of running objects that share a MAC address",
	}, []string{"mac"})}
	var already prometheus.AlreadyRegisteredError
	if err := metrics.Registry.Register(g.collisions); errors.As(err, &already) {
		g.collisions = already.ExistingCollector.(*prometheus.GaugeVec) // a second controller in one process, as in tests
	}
	return g
}

// set says how many share an address; nobody asks about one that is not shared.
func (g *gauges) set(mac string, sharing int) {
	if sharing < 2 {
		g.collisions.DeleteLabelValues(mac)
		return
	}
	g.collisions.WithLabelValues(mac).Set(float64(sharing))
}
