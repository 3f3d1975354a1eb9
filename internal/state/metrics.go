package state

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the store tells of itself.
type metrics struct {
	reg     prometheus.Registerer
	all     []prometheus.Collector
	commits prometheus.Histogram
	syncs   prometheus.Histogram
	moved   prometheus.Counter
}

func newMetrics(s *Store, reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "backstory_state_commit_duration_seconds",
			Help:    "Time to append a batch to the state.",
			Buckets: prometheus.ExponentialBuckets(0.00005, 2, 16),
		}),
		syncs: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "backstory_state_sync_duration_seconds",
			Help:    "Time to make the state durable.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		moved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "backstory_state_moved_bytes_total",
			Help: "Bytes of records that compaction has written again.",
		}),
	}
	gauge := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read)
	}
	m.all = []prometheus.Collector{m.commits, m.syncs, m.moved,
		gauge("backstory_state_keys", "Keys in the state, of deleted aggregates and notes too.",
			func() float64 { return float64(s.usage().keys) }),
		gauge("backstory_state_disk_bytes", "Size of the state's files.",
			func() float64 { return float64(s.usage().disk) }),
		gauge("backstory_state_live_bytes", "Size of the records that are current.",
			func() float64 { return float64(s.usage().live) }),
		gauge("backstory_state_index_bytes", "Memory of the state's index.",
			func() float64 { return float64(s.usage().index) }),
	}
	if reg == nil {
		return m, nil
	}
	m.reg = reg
	for i, c := range m.all {
		if err := reg.Register(c); err != nil {
			m.all = m.all[:i]
			m.unregister()
			return nil, err
		}
	}
	return m, nil
}

// unregister lets a later store register its own.
func (m *metrics) unregister() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}

// usage is what the store takes up.
type usage struct {
	keys    int
	disk    int64 // bytes of all segments
	movable int64 // bytes of them that compaction can give back or move
	live    int64 // bytes of current records
	index   int   // bytes of RAM
}

func (s *Store) usage() usage {
	s.mu.RLock()
	defer s.mu.RUnlock()
	u := usage{keys: s.index.used, index: s.index.bytes()}
	for _, seg := range s.segments {
		if seg != nil {
			u.disk += seg.size
			u.movable += seg.movable()
			u.live += seg.live
		}
	}
	return u
}
