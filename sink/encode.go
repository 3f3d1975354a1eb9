package sink

import (
	"bytes"
	"fmt"

	"backstory/transform"
)

// encoder turns events into the batches of a publication. It keeps its buffers
// from one publication to the next and serves one goroutine.
//
// It goes by partition, so that one batch is open at a time: the events are
// gathered in bundles (those of one change and aggregate), the bundles sorted by
// partition, then each partition is written as a whole.
type encoder struct {
	tables map[*transform.Table]*tableTopics
	slots  int // partitions of all events topics
	limit  int // bytes before compression at which a batch is closed
	dead   *topicLog

	writer  batchWriter
	events  []transform.Event // of the current call
	bundles []bundle
	sorted  []int32 // indices of bundles, by partition
	starts  []int32 // by partition: where its bundles begin in sorted; one more at the end
	newest  []int32 // indices of bundles: the newest of each aggregate of a partition
	seen    []int32 // hash table of the aggregates of a partition: index of bundle + 1
}

// bundle is a run of events of one change and one aggregate.
type bundle struct {
	first, count int32 // in the events
	slot         int32 // partition, counted over all events topics
	hash         uint32
	topics       *tableTopics
}

// encode fills an empty publication. below is nil for events; otherwise only the
// latest topics are written, and below has what ce_eventsoffset says.
func (en *encoder) encode(pub *Publication, events []transform.Event, below []int64) error {
	en.events = events
	defer func() { en.events = nil }()
	if err := en.gather(); err != nil {
		return err
	}
	en.sort()
	for slot := range en.slots {
		bundles := en.sorted[en.starts[slot]:en.starts[slot+1]]
		if len(bundles) == 0 {
			continue
		}
		t := en.bundles[bundles[0]].topics
		part := slot - t.slot
		offset := t.events.parts[part].planned
		if below != nil {
			if part >= len(below) {
				return fmt.Errorf("encode states of %s: %d offsets for %d partitions", t.table.Aggregate, len(below), len(t.events.parts))
			}
			offset = below[part]
		} else if err := en.writeEvents(pub, t, &t.events.parts[part], bundles); err != nil {
			return err
		}
		if err := en.writeLatest(pub, t, &t.latest.parts[part], bundles, offset); err != nil {
			return err
		}
	}
	return nil
}

// gather cuts the events into bundles.
func (en *encoder) gather() error {
	en.bundles = en.bundles[:0]
	var t *tableTopics
	for i := range en.events {
		e := &en.events[i]
		if i > 0 && together(&en.events[i-1], e) {
			en.bundles[len(en.bundles)-1].count++
			continue
		}
		if t == nil || t.table != e.Table {
			if t = en.tables[e.Table]; t == nil {
				return fmt.Errorf("encode event %s at %s: its table is not in the mapping", e.Type, e.Place.Pos)
			}
		}
		hash := murmur2(e.Key)
		en.bundles = append(en.bundles, bundle{
			first: int32(i), count: 1, hash: hash, topics: t,
			slot: int32(t.slot) + partitionOf(hash, len(t.events.parts)),
		})
	}
	return nil
}

// together reports whether two events are of one change and one aggregate.
func together(a, b *transform.Event) bool {
	return a.Place.Pos == b.Place.Pos && a.Table == b.Table && bytes.Equal(a.Key, b.Key)
}

// sort orders the bundles by partition and leaves their order within one.
func (en *encoder) sort() {
	en.starts = append(en.starts[:0], make([]int32, en.slots+2)...)
	at := en.starts[1:] // while sorting, one ahead
	for i := range en.bundles {
		at[en.bundles[i].slot+1]++
	}
	for i := 1; i < len(at); i++ {
		at[i] += at[i-1]
	}
	if cap(en.sorted) < len(en.bundles) {
		en.sorted = make([]int32, len(en.bundles))
	}
	en.sorted = en.sorted[:len(en.bundles)]
	for i := range en.bundles {
		slot := en.bundles[i].slot
		en.sorted[at[slot]] = int32(i)
		at[slot]++
	}
}

// writeEvents writes the batches of one partition of an events topic.
func (en *encoder) writeEvents(pub *Publication, t *tableTopics, part *partition, bundles []int32) error {
	out := &pub.events
	out.begin(part)
	en.writer.begin(part)
	for _, i := range bundles {
		g := &en.bundles[i]
		events := en.events[g.first : g.first+g.count]
		bound := 0
		for j := range events {
			bound += recordBound(&t.shared[transform.Events], &events[j], len(events[j].Data))
		}
		if err := en.room(pub, out, t.events, bound); err != nil {
			return err
		}
		for j := range events {
			en.writer.add(&t.shared[transform.Events], &events[j], &recordExtra{typ: events[j].Type, eventsOffset: -1}, events[j].Data)
		}
		if bound > en.target(t.events) {
			if err := en.fit(pub, large{t, t.events, events, -1}); err != nil {
				return err
			}
		}
	}
	if err := en.flush(pub, out); err != nil {
		return err
	}
	pub.mark(part)
	return nil
}

// writeLatest writes the newest state of each aggregate of one partition.
func (en *encoder) writeLatest(pub *Publication, t *tableTopics, part *partition, bundles []int32, offset int64) error {
	out := &pub.latest
	out.begin(part)
	en.writer.begin(part)
	for _, i := range en.newestOf(bundles) {
		g := &en.bundles[i]
		event := en.events[g.first+g.count-1 : g.first+g.count]
		e := &event[0]
		bound := recordBound(&t.shared[transform.Latest], e, len(e.State)+len(t.stateType))
		if err := en.room(pub, out, t.latest, bound); err != nil {
			return err
		}
		en.writer.add(&t.shared[transform.Latest], e, &recordExtra{typ: t.stateType, eventsOffset: offset}, e.State)
		if bound > en.target(t.latest) {
			if err := en.fit(pub, large{t, t.latest, event, offset}); err != nil {
				return err
			}
		}
	}
	if err := en.flush(pub, out); err != nil {
		return err
	}
	pub.mark(part)
	return nil
}

// newestOf returns the last bundle of each aggregate, in the order of the bundles.
func (en *encoder) newestOf(bundles []int32) []int32 {
	size := 16
	for size < 2*len(bundles) {
		size *= 2
	}
	if len(en.seen) < size {
		en.seen = make([]int32, size)
	}
	seen := en.seen[:size]
	clear(seen)
	en.newest = en.newest[:0]
	for n := len(bundles) - 1; n >= 0; n-- {
		i := bundles[n]
		if en.enter(seen, i) {
			en.newest = append(en.newest, i)
		}
	}
	for a, b := 0, len(en.newest)-1; a < b; a, b = a+1, b-1 {
		en.newest[a], en.newest[b] = en.newest[b], en.newest[a]
	}
	return en.newest
}

// enter notes the aggregate of a bundle and reports whether it is new.
func (en *encoder) enter(seen []int32, i int32) bool {
	g := &en.bundles[i]
	key := en.events[g.first].Key
	// All keys here have the same remainder by the number of partitions: a
	// multiplication spreads what is left of the hash over the table.
	for at := (g.hash * 0x9e3779b1) >> 8; ; at++ {
		entry := &seen[at&uint32(len(seen)-1)]
		if *entry == 0 {
			*entry = i + 1
			return true
		}
		h := &en.bundles[*entry-1]
		if h.hash == g.hash && bytes.Equal(en.events[h.first].Key, key) {
			return false
		}
	}
}

// target is where a batch of the topic is closed, in bytes before compression. A
// batch below it is below the topic's limit, whatever compression gives.
func (en *encoder) target(topic *topicLog) int {
	return min(en.limit, topic.limit-batchRecordsAt)
}

// room closes the open batch if records of up to bound bytes do not fit into it.
func (en *encoder) room(pub *Publication, out *phase, topic *topicLog, bound int) error {
	if len(en.writer.raw)+bound <= en.target(topic) {
		return nil
	}
	return en.flush(pub, out)
}

// flush closes the open batch and begins the next.
func (en *encoder) flush(pub *Publication, out *phase) error {
	raw := len(en.writer.raw)
	arena, b, err := en.writer.close(pub.arena)
	pub.arena = arena
	if err != nil {
		return fmt.Errorf("encode a batch for %s: %w", en.writer.part, err)
	}
	if b.count > 0 {
		out.add(b)
		pub.bytes += int64(raw)
	}
	en.writer.begin(en.writer.part)
	return nil
}
