package sink_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"

	"backstory/capture"
	"backstory/internal/testenv"
	"backstory/sink"
	"backstory/transform"
)

// TestPublish writes events with every codec and reads them with another client.
func TestPublish(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			t.Parallel()
			name := cluster.Name(codec)
			m := shop(name, 3)
			cfg := config(cluster.Brokers())
			cfg.Compression = codec
			p := fenced(t, cfg, m, name)
			mk := newMaker(m)
			first := mk.many(500)
			publish(t, p, first)
			second := slices.Concat(mk.change("key-1", "PriceChanged", "StockAdjusted"), mk.change("key-2", "ProductDeleted"))
			publish(t, p, second)

			events := consume(t, cluster.Brokers(), name+".events")
			if len(events) != len(first)+len(second) {
				t.Fatalf("got %d events, want %d", len(events), len(first)+len(second))
			}
			want := make(map[string]transform.Event)
			for _, e := range slices.Concat(first, second) {
				want[string(e.Key)+"/"+string(rune('0'+e.Version))] = e
			}
			balancer := kafka.Murmur2Balancer{}
			for _, r := range events {
				v, _ := header(r, sink.HeaderAggregateVersion)
				e := want[string(r.Key)+"/"+v]
				if string(r.Value) != string(e.Data) || r.Timestamp.UnixMilli() != e.Time/1000 {
					t.Errorf("%s version %s: got %s at %v, want %s", r.Key, v, r.Value, r.Timestamp, e.Data)
				}
				if part := balancer.Balance(kafka.Message{Key: r.Key}, 0, 1, 2); int(r.Partition) != part {
					t.Errorf("%s stands in partition %d, want %d", r.Key, r.Partition, part)
				}
			}
			states := consume(t, cluster.Brokers(), name+".latest")
			if got, want := len(states), 502; got != want {
				t.Fatalf("got %d states, want %d", got, want)
			}
			if n := len(slices.DeleteFunc(slices.Clone(states), func(r *kgo.Record) bool { return r.Value != nil })); n != 1 {
				t.Errorf("got %d tombstones, want 1", n)
			}
		})
	}
}

// TestHeaders pins what a record says of its event, and in which order.
func TestHeaders(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("headers")
	m := shop(name, 1)
	p := fenced(t, config(cluster.Brokers()), m, name)
	e := newMaker(m).change("7", "PriceChanged")[0]
	e.Cause, e.Related = transform.KeyChanged, []byte("8")
	e.Context = &capture.Context{Actor: "ann", CorrelationID: "c-1", CausationID: "d-2"}
	publish(t, p, []transform.Event{e})

	latest := consume(t, cluster.Brokers(), name+".latest")[0]
	want := [][2]string{
		{"ce_specversion", "1.0"},
		{"content-type", "application/json"},
		{"ce_source", "/postgres/7301234567890/legacy/public.products#latest"},
		{"ce_aggregatetype", "Product"},
		{"ce_id", "d3d2f579-8ea0-625e-5aad-fd88a48abffb"},
		{"ce_type", "ProductState.v1"},
		{"ce_subject", "7"},
		{"ce_aggregateversion", "1"},
		{"ce_time", "2026-09-01T12:00:22.811000Z"},
		{"ce_sequence", "00000000015A2F38-1-0000000001-001"},
		{"ce_op", "update"},
		{"ce_xid", "744"},
		{"ce_cause", "key-changed"},
		{"ce_related", "8"},
		{"ce_actor", "ann"},
		{"ce_correlationid", "c-1"},
		{"ce_causationid", "d-2"},
		{"ce_eventsoffset", "1"},
	}
	var got [][2]string
	for _, h := range latest.Headers {
		got = append(got, [2]string{h.Key, string(h.Value)})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("headers of the state (-want +got):\n%s", diff)
	}
}
