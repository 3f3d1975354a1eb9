package bridge

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the bridge's own; capture, sink and state register theirs.
type metrics struct {
	events     prometheus.Counter
	restarts   prometheus.Counter
	mismatches prometheus.Counter
	lastCommit prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		events: prometheus.NewCounter(prometheus.CounterOpts{Name: "backstory_events_total",
			Help: "Events that are durable in both topics."}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{Name: "backstory_session_restarts_total",
			Help: "Sessions that ended with an error that a new session mends."}),
		mismatches: prometheus.NewCounter(prometheus.CounterOpts{Name: "backstory_state_mismatches_total",
			Help: "Old rows in WAL (REPLICA IDENTITY FULL) that differ from the state."}),
		lastCommit: prometheus.NewGauge(prometheus.GaugeOpts{Name: "backstory_last_commit_timestamp_seconds",
			Help: "Commit time of the newest change that is durable in both topics."}),
	}
	reg.MustRegister(m.events, m.restarts, m.mismatches, m.lastCommit)
	return m
}

// published counts a publication that is in both topics.
func (m *metrics) published(p *piece) {
	m.events.Add(float64(len(p.out.Events)))
	if p.time != 0 {
		m.lastCommit.Set(float64(p.time) / 1e6)
	}
}
