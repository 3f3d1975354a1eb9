package sink

import (
	"fmt"
	"strconv"

	"backstory/transform"
)

// large is a bundle of events whose records may be too large for one batch of
// their topic. They are the open batch, and alone in it.
type large struct {
	topics *tableTopics
	topic  *topicLog
	events []transform.Event
	offset int64 // ce_eventsoffset, -1: absent
}

func (l *large) extra(e *transform.Event) recordExtra {
	if l.topic.kind == transform.Latest {
		return recordExtra{typ: l.topics.stateType, eventsOffset: l.offset}
	}
	return recordExtra{typ: e.Type, eventsOffset: -1}
}

// shared are the headers of the records. A letter has those of the record whose
// value it is.
func (l *large) shared() *sharedHeaders { return &l.topics.shared[l.topic.kind] }

func (l *large) value(e *transform.Event) []byte {
	if l.topic.kind == transform.Latest {
		return e.State
	}
	return e.Data
}

// fit closes the open batch. Where it is above the topic's limit, the largest
// records are parked, one after another, until it is not: the record goes to the
// dead-letter topic, and one with a reference to it takes its place, so that
// version and offset of every event stay what they would have been.
func (en *encoder) fit(pub *Publication, l large) error {
	out := pub.phaseOf(l.topic.kind)
	var refs [][]byte
	for {
		mark := len(pub.arena)
		raw := len(en.writer.raw)
		arena, b, err := en.writer.close(pub.arena)
		pub.arena = arena
		if err != nil {
			return fmt.Errorf("encode a batch for %s: %w", b.part, err)
		}
		if b.size() <= l.topic.limit {
			out.add(b)
			pub.bytes += int64(raw)
			en.writer.begin(b.part)
			return nil
		}
		i := l.largest(refs)
		if en.dead == nil || i < 0 {
			return l.refuse(b.size())
		}
		part := b.part
		part.planned = b.base
		pub.arena = pub.arena[:mark]
		if refs == nil {
			refs = make([][]byte, len(l.events))
		}
		if refs[i], err = en.park(pub, &l, i); err != nil {
			return err
		}
		en.writer.begin(part)
		en.addLarge(&l, refs)
	}
}

// largest is the index of the record with the largest value that is not parked
// yet; -1 if there is none that parking would make smaller.
func (l *large) largest(refs [][]byte) int {
	best, size := -1, len(StandInValue)
	for i := range l.events {
		if refs != nil && refs[i] != nil {
			continue
		}
		if n := len(l.value(&l.events[i])); n > size {
			best, size = i, n
		}
	}
	return best
}

func (en *encoder) addLarge(l *large, refs [][]byte) {
	for i := range l.events {
		e := &l.events[i]
		x, value := l.extra(e), l.value(e)
		if refs[i] != nil {
			x.dataRef, value = refs[i], []byte(StandInValue)
		}
		en.writer.add(l.shared(), e, &x, value)
	}
}

// park writes the record in full to the dead-letter topic, in a batch of its
// own, and returns the reference to it. All dead letters go to partition 0: those of
// one publication come from several partitions in turn, and a phase wants the
// batches of a partition next to each other.
func (en *encoder) park(pub *Publication, l *large, i int) ([]byte, error) {
	e := &l.events[i]
	part := &en.dead.parts[0]
	out := &pub.letters
	out.begin(part)
	en.writer.begin(part)
	x := l.extra(e)
	en.writer.add(l.shared(), e, &x, l.value(e))
	raw := len(en.writer.raw)
	arena, b, err := en.writer.close(pub.arena)
	pub.arena = arena
	if err != nil {
		return nil, fmt.Errorf("encode a batch for %s: %w", part, err)
	}
	if b.size() > en.dead.limit {
		lone := large{l.topics, en.dead, l.events[i : i+1], l.offset}
		return nil, lone.refuse(b.size())
	}
	out.add(b)
	pub.bytes += int64(raw)
	pub.parked++
	ref := append([]byte("kafka:"), en.dead.name...)
	ref = strconv.AppendInt(append(ref, '/'), int64(part.index), 10)
	return strconv.AppendInt(append(ref, '/'), b.base, 10), nil
}

// refuse names the aggregate whose records do not fit.
func (l *large) refuse(size int) error {
	e := &l.events[0]
	what := fmt.Sprintf("the record of %s %q, version %d, has", e.Table.Aggregate, e.Key, e.Version)
	if len(l.events) > 1 {
		what = fmt.Sprintf("the %d events of one change of %s %q, from version %d, have", len(l.events), e.Table.Aggregate, e.Key, e.Version)
	}
	cure := fmt.Sprintf("raise it: kafka-configs --alter --topic %s --add-config max.message.bytes=%d", l.topic.name, 2*size)
	if l.topic.table != nil {
		cure += "; or set kafka.dead_letter_topic; or leave the large column out (omit in the mapping)"
	}
	return &Refusal{
		Thing:   "topic " + l.topic.name,
		Problem: fmt.Sprintf("%s %d bytes in a batch of their own, and max.message.bytes is %d", what, size, l.topic.limit),
		Cure:    cure,
	}
}
