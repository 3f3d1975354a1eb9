package capture

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// streamMetrics are those of all streams of a Database, one after another.
type streamMetrics struct {
	changes      prometheus.Counter
	transactions prometheus.Counter
	received     prometheus.Gauge
	confirmed    prometheus.Gauge
}

// newStreamMetrics registers the metrics, or finds those of the stream before.
func newStreamMetrics(reg prometheus.Registerer) (*streamMetrics, error) {
	m := &streamMetrics{
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "backstory_captured_changes_total",
			Help: "Row changes of mapped tables that were passed on.",
		}),
		transactions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "backstory_captured_transactions_total",
			Help: "Transactions that were received in full, also those without a change of a mapped table.",
		}),
		received: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "backstory_received_lsn_bytes",
			Help: "Position in WAL below which every transaction was passed on.",
		}),
		confirmed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "backstory_confirmed_lsn_bytes",
			Help: "Position in WAL last reported to the server as durable.",
		}),
	}
	return m, errors.Join(
		registerOnce(reg, &m.changes), registerOnce(reg, &m.transactions),
		registerOnce(reg, &m.received), registerOnce(reg, &m.confirmed))
}

// registerOnce registers a collector, or replaces it by the one of the same name
// that is registered already.
func registerOnce[C prometheus.Collector](reg prometheus.Registerer, c *C) error {
	err := reg.Register(*c)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if known, ok := already.ExistingCollector.(C); ok {
			*c = known
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("register metrics of the stream: %w", err)
	}
	return nil
}
