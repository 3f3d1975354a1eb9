package sink

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what the writing half tells of itself.
type metrics struct {
	records  *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	publish  *prometheus.HistogramVec
	fence    prometheus.Histogram
	retries  prometheus.Counter
	waiting  prometheus.Gauge
	parked   prometheus.Counter
	inFlight prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	buckets := prometheus.ExponentialBuckets(0.0005, 2, 18) // 0.5 ms to 65 s
	m := &metrics{
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "backstory_published_records_total", Help: "Records acknowledged by Kafka.",
		}, []string{"topic"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "backstory_published_bytes_total", Help: "Bytes of the acknowledged batches, compressed.",
		}, []string{"topic"}),
		publish: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "backstory_publish_duration_seconds", Help: "Time from the first request of a publication to its last acknowledgement, by kind of topic.",
			Buckets: buckets,
		}, []string{"kind"}),
		fence: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "backstory_fence_duration_seconds", Help: "Time to fence former sessions and open a new one.", Buckets: buckets,
		}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "backstory_kafka_retries_total", Help: "Requests to Kafka that were tried again.",
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "backstory_kafka_waiting", Help: "Steps that wait for Kafka to answer; 0 when all is well.",
		}),
		parked: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "backstory_dead_letters_total", Help: "Records that were too large for their topic and went to the dead-letter topic.",
		}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "backstory_publication_bytes", Help: "Bytes, before compression, of publications that are not released.",
		}),
	}
	for _, c := range []prometheus.Collector{
		m.records, m.bytes, m.publish, m.fence, m.retries, m.waiting, m.parked, m.inFlight,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return m, nil
}

// published counts the acknowledged batches of a phase.
func (m *metrics) published(ph *phase, took time.Duration) {
	for i := range ph.queues {
		q := &ph.queues[i]
		records, bytes := 0, 0
		for j := q.first; j < q.end; j++ {
			records += int(ph.batches[j].count)
			bytes += ph.batches[j].size()
		}
		q.part.topic.records.Add(float64(records))
		q.part.topic.bytes.Add(float64(bytes))
	}
	ph.queues[0].part.topic.publish.Observe(took.Seconds())
}
