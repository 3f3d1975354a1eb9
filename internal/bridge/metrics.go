package bridge

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the bridge's own; capture, sink and state register theirs.
type metrics struct {
	changes    prometheus.Counter
	events     prometheus.Counter
	restarts   prometheus.Counter
	mismatches prometheus.Counter
	publish    prometheus.Histogram
	lastCommit prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		changes: prometheus.NewCounter(prometheus.CounterOpts{Name: "backstory_changes_total",
			Help: "Row changes taken from the slot, redelivered ones included."}),
		events: prometheus.NewCounter(prometheus.CounterOpts{Name: "backstory_events_total",
			Help: "Events that are durable in both topics."}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{Name: "backstory_session_restarts_total",
			Help: "Sessions that ended with an error that a new session mends."}),
		mismatches: prometheus.NewCounter(prometheus.CounterOpts{Name: "backstory_state_mismatches_total",
			Help: "Old rows in WAL (REPLICA IDENTITY FULL) that differ from the state."}),
		publish: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "backstory_publish_duration_seconds",
			Help:    "Time from the first produce request of a publication to the acknowledgement of its last record.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}),
		lastCommit: prometheus.NewGauge(prometheus.GaugeOpts{Name: "backstory_last_commit_timestamp_seconds",
			Help: "Commit time of the newest change that is durable in both topics."}),
	}
	reg.MustRegister(m.changes, m.events, m.restarts, m.mismatches, m.publish, m.lastCommit)
	return m
}

// published counts a publication that is in both topics.
func (m *metrics) published(p *piece, took time.Duration) {
	m.events.Add(float64(len(p.out.Events)))
	m.publish.Observe(took.Seconds())
	if p.time != 0 {
		m.lastCommit.Set(float64(p.time) / 1e6)
	}
}
