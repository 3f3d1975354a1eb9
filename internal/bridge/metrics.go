package bridge

import (
	"github.com/prometheus/client_golang/prometheus"

	"backstory/transform"
)

// metrics are the bridge's own; capture, sink and state register theirs.
type metrics struct {
	events     prometheus.Counter
	restarts   prometheus.Counter
	mismatches prometheus.Counter
	lastCommit prometheus.Gauge
	streaming  prometheus.Gauge
	switches   *prometheus.CounterVec

	backfillRows    *prometheus.GaugeVec
	backfillTotal   *prometheus.GaugeVec
	backfillEvents  *prometheus.GaugeVec
	backfillRunning *prometheus.GaugeVec
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
		streaming: prometheus.NewGauge(prometheus.GaugeOpts{Name: "backstory_streaming",
			Help: "1 while the bridge has the slot and streams; 0 while it starts, stands by, recovers or reconnects."}),
		switches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "backstory_timeline_switches_total",
			Help: "Fail-overs to a later timeline that the bridge has met, by what it did: followed, refused or repaired."}, []string{"outcome"}),
		backfillRows: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "backstory_backfill_rows",
			Help: "Rows that the table's last backfill has applied so far."}, []string{"table"}),
		backfillTotal: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "backstory_backfill_estimated_rows",
			Help: "Rows that it is going to read, as estimated by now; 0: unknown."}, []string{"table"}),
		backfillEvents: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "backstory_backfill_events",
			Help: "Events that it has made so far."}, []string{"table"}),
		backfillRunning: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "backstory_backfill_running",
			Help: "1 while a backfill of the table is not done, paused or not."}, []string{"table"}),
	}
	reg.MustRegister(m.events, m.restarts, m.mismatches, m.lastCommit, m.streaming, m.switches,
		m.backfillRows, m.backfillTotal, m.backfillEvents, m.backfillRunning)
	return m
}

// backfill shows how far the reading of a table is.
func (m *metrics) backfill(t *transform.Table, s BackfillStatus) {
	name := t.Schema + "." + t.Name
	m.backfillRows.WithLabelValues(name).Set(float64(s.Rows))
	m.backfillTotal.WithLabelValues(name).Set(float64(s.EstimatedRows))
	m.backfillEvents.WithLabelValues(name).Set(float64(s.Events))
	running := 1.0
	if s.Phase == "done" || s.Phase == "none" || s.Phase == "failed" {
		running = 0
	}
	m.backfillRunning.WithLabelValues(name).Set(running)
}

// published counts a publication that is in both topics.
func (m *metrics) published(p *piece) {
	m.events.Add(float64(len(p.out.Events)))
	if p.time != 0 {
		m.lastCommit.Set(float64(p.time) / 1e6)
	}
}
