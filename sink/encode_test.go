package sink

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"backstory/capture"
	"backstory/transform"
)

// offline is a producer with a session and topics of the given number of
// partitions, and no brokers.
func offline(tb testing.TB, compression string, partitions int) *Producer {
	tb.Helper()
	cfg := DefaultConfig()
	cfg.Compression = compression
	m, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		tb.Fatal(err)
	}
	p := &Producer{cfg: cfg, log: slog.New(slog.DiscardHandler), metrics: m, tables: make(map[*transform.Table]*tableTopics)}
	if err := p.lay(&transform.Mapping{Tables: []*transform.Table{productTable}}, capture.Identity{System: 7, Database: "legacy"}); err != nil {
		tb.Fatal(err)
	}
	for _, t := range p.topics {
		t.limit = createdLimit
		t.parts = make([]partition, partitions)
		for i := range t.parts {
			t.parts[i] = partition{topic: t, index: int32(i)}
		}
	}
	if err := p.prepareEncoder(); err != nil {
		tb.Fatal(err)
	}
	p.session, p.planned = session{id: 1, epoch: 1, number: 1, opened: time.Now()}, 1
	return p
}

// pretend acknowledges everything, so that the buffers are used again.
func pretend(pub *Publication) {
	for _, ph := range []*phase{&pub.letters, &pub.events, &pub.latest} {
		for i := range ph.queues {
			ph.queues[i].next = ph.queues[i].end
		}
	}
}

// changes makes n events of some keys, as transform hands them out.
func changes(n, keys int) []transform.Event {
	events := make([]transform.Event, n)
	said := &capture.Context{Actor: "ann", CorrelationID: "c-1"}
	for i := range events {
		events[i] = transform.Event{
			ID: someID(i), Type: "PriceChanged.v1", Table: productTable, Key: fmt.Append(nil, "key-", i%keys), Version: uint64(1 + i/keys),
			Place: transform.Place{Pos: capture.Position{LSN: capture.LSN(1000 + i), Kind: capture.KindChange, Index: 1}, Index: 1},
			XID:   uint32(i), Time: 1_788_264_000_000_000 + int64(i)*1000, Op: capture.OpUpdate, Context: said,
			Data:  fmt.Appendf(nil, `{"old":{"price":"%d.00"},"new":{"price":"%d.50"},"reason":"spring sale"}`, i, i),
			State: fmt.Appendf(nil, `{"id":%d,"name":"a product of some name","price":"%d.50","stock":12}`, i%keys, i),
		}
	}
	return events
}

// A publication like the one before costs no allocation for an event. What is let
// pass is that of pools in the compressors, which the garbage collector empties, as
// does the race detector at random.
func TestEncodeDoesNotAllocate(t *testing.T) {
	for _, compression := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			p := offline(t, compression, 6)
			events := changes(5000, 700)
			once := func() {
				pub, err := p.Encode(events)
				if err != nil {
					t.Fatal(err)
				}
				for i := range pub.events.batches {
					pub.events.batches[i].stamp(pub.arena, p.session)
				}
				pretend(pub)
				pub.Release()
			}
			for range 3 {
				once()
			}
			if n := testing.AllocsPerRun(20, once); n > float64(len(events))/100 {
				t.Errorf("got %v allocations for %d events, want none", n, len(events))
			}
		})
	}
}

// written is what a phase would put into the topics, batch by batch, decoded.
func written(t *rapid.T, p *Producer, pub *Publication, ph *phase) map[*partition][]transform.Stored {
	out := make(map[*partition][]transform.Stored)
	seen := make(map[*partition]bool)
	var d decoder
	for _, q := range ph.queues {
		if seen[q.part] {
			t.Fatalf("%s has two queues", q.part)
		}
		seen[q.part] = true
		next := int64(0)
		for i := q.first; i < q.end; i++ {
			b := &ph.batches[i]
			if b.part != q.part || b.base != next {
				t.Fatalf("%s: a batch of %s at offset %d, want %d", q.part, b.part, b.base, next)
			}
			if i > q.first {
				if a := &ph.batches[i-1]; a.from == b.from {
					t.Fatalf("%s: two batches in one place", q.part)
				}
			}
			b.stamp(pub.arena, p.session)
			d.reset(pub.arena[b.from+frameSize:b.to], 0)
			d.want = 0
			parse := parser{topic: q.part.topic.name, table: productTable, kind: q.part.topic.kind}
			var rec record
			var positions []capture.Position
			for {
				ok, err := d.next(&rec)
				if err != nil {
					t.Fatalf("%s: %v", q.part, err)
				}
				if !ok {
					break
				}
				var s transform.Stored
				if ok, err := parse.parse(&rec, q.part.index, &s); !ok || err != nil {
					t.Fatalf("%s: %v", q.part, err)
				}
				s.Offset += b.base
				out[q.part] = append(out[q.part], *clone(&s))
				positions = append(positions, s.Place.Pos)
			}
			next = b.base + int64(b.count)
			if len(positions) != int(b.count) || next != int64(len(out[q.part])) {
				t.Fatalf("%s: a batch of %d records says %d", q.part, len(positions), b.count)
			}
		}
		if q.part.planned != next {
			t.Fatalf("%s: the plan is %d, want %d", q.part, q.part.planned, next)
		}
	}
	return out
}

// Whatever is encoded, the batches hold each event in its place: those of one
// change in one batch, of one key in one partition, in order; and the newest state
// of each key in latest.
func TestEncodeProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := offline(&quietTB{}, rapid.SampledFrom([]string{"none", "gzip", "snappy", "lz4", "zstd"}).Draw(t, "codec"), rapid.IntRange(1, 5).Draw(t, "partitions"))
		p.encoder.limit = rapid.IntRange(2000, 100_000).Draw(t, "batch")
		var events []transform.Event
		versions := make(map[string]uint64)
		for i := range rapid.IntRange(1, 60).Draw(t, "changes") {
			key := rapid.SampledFrom([]string{"", "a", "b", "c/d", "ключ", "0", "42", "a very long key indeed"}).Draw(t, "key")
			for j := range rapid.IntRange(1, 3).Draw(t, "events") {
				versions[key]++
				e := changes(1, 1)[0]
				e.ID, e.Key, e.Version = someID(len(events)), []byte(key), versions[key]
				e.Place = transform.Place{Pos: capture.Position{LSN: capture.LSN(10 + i), Kind: capture.KindChange, Index: uint32(i)}, Index: uint16(j + 1)}
				e.Time = rapid.Int64Range(-62_135_596_800_000_000, 253_402_300_799_999_999).Draw(t, "time")
				e.Data = bytes.Repeat([]byte("d"), rapid.IntRange(2, 3000).Draw(t, "data"))
				e.State = bytes.Repeat([]byte("s"), rapid.IntRange(2, 3000).Draw(t, "state"))
				if rapid.IntRange(0, 9).Draw(t, "deleted") == 0 {
					e.State = nil
				}
				events = append(events, e)
			}
		}
		pub, err := p.Encode(events)
		if err != nil {
			t.Fatal(err)
		}
		checkEvents(t, events, written(t, p, pub, &pub.events))
		checkStates(t, events, written(t, p, pub, &pub.latest))
		for _, b := range pub.events.batches {
			checkWhole(t, pub, &b)
		}
	})
}

// checkEvents compares the events topic with the events, key by key.
func checkEvents(t *rapid.T, events []transform.Event, got map[*partition][]transform.Stored) {
	next := make(map[string][]transform.Event)
	for _, e := range events {
		next[string(e.Key)] = append(next[string(e.Key)], e)
	}
	for part, stored := range got {
		for _, s := range stored {
			key := string(s.Key)
			if want := partitionOf(murmur2(s.Key), len(part.topic.parts)); part.index != want {
				t.Fatalf("key %q stands in partition %d, want %d", key, part.index, want)
			}
			if len(next[key]) == 0 {
				t.Fatalf("key %q has an event too many", key)
			}
			want := next[key][0]
			want.State = nil
			next[key] = next[key][1:]
			if diff := cmp.Diff(want, s.Event); diff != "" {
				t.Fatalf("key %q: %s", key, diff)
			}
		}
	}
	for key, left := range next {
		if len(left) > 0 {
			t.Fatalf("key %q lacks %d events", key, len(left))
		}
	}
}

// checkStates compares the latest topic with the newest event of each key.
func checkStates(t *rapid.T, events []transform.Event, got map[*partition][]transform.Stored) {
	newest := make(map[string]transform.Event)
	for _, e := range events {
		newest[string(e.Key)] = e
	}
	for _, stored := range got {
		for _, s := range stored {
			want, ok := newest[string(s.Key)]
			if !ok {
				t.Fatalf("key %q has a state too many", s.Key)
			}
			delete(newest, string(s.Key))
			want.Data, want.Type = nil, productTable.TypePrefix+productTable.Aggregate+StateType
			if diff := cmp.Diff(want, s.Event); diff != "" {
				t.Fatalf("key %q: %s", s.Key, diff)
			}
		}
	}
	if len(newest) > 0 {
		t.Fatalf("%d states are missing", len(newest))
	}
}

// checkWhole checks that a batch ends with the last event of a change.
func checkWhole(t *rapid.T, pub *Publication, b *batch) {
	next := slices.IndexFunc(pub.events.batches, func(o batch) bool { return o.part == b.part && o.base == b.base+int64(b.count) })
	if next < 0 {
		return
	}
	last, first := placeOf(t, pub, b, b.count-1), placeOf(t, pub, &pub.events.batches[next], 0)
	if last.Pos == first.Pos {
		t.Fatalf("the change at %s is cut between two batches", last.Pos)
	}
}

func placeOf(t *rapid.T, pub *Publication, b *batch, index int32) transform.Place {
	var d decoder
	var rec record
	d.reset(pub.arena[b.from+frameSize:b.to], 0)
	for {
		if ok, err := d.next(&rec); !ok || err != nil {
			t.Fatalf("record %d is not there: %v", index, err)
		}
		if rec.offset == int64(index) {
			var s transform.Stored
			if _, err := (&parser{table: productTable, kind: transform.Events}).parse(&rec, 0, &s); err != nil {
				t.Fatal(err)
			}
			return s.Place
		}
	}
}

// quietTB lets offline fail within a property.
type quietTB struct{ testing.TB }

func (*quietTB) Helper()           {}
func (*quietTB) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// A publication of a session that is over is not sent.
func TestPublishOfAnotherSession(t *testing.T) {
	t.Parallel()
	p := offline(t, "none", 1)
	p.reader = newReader(&client{cfg: p.cfg}, p.log)
	pub, err := p.Encode(changes(1, 1))
	if err != nil {
		t.Fatal(err)
	}
	p.session.number++
	if err := pub.Events(context.Background()); err == nil || !p.over.Load() {
		t.Errorf("got %v, want a SessionError, and the session over", err)
	}
	old := offline(t, "none", 1)
	old.session.opened = time.Now().Add(-maxSession - time.Minute)
	if _, err := old.Encode(changes(1, 1)); err == nil {
		t.Error("a session older than brokers remember may encode")
	}
}
