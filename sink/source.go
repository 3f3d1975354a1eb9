package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"backstory/transform"
)

// sources tells which records belong into the topics of a table: those of its own
// source, and those of the sources that the topics had before.
type sources struct {
	table *transform.Table
	own   string
	// learned are former sources that records of the own one tell of: the state
	// that knew them is lost.
	learned []string
}

// adoptCure is the way out where a topic, or a state, is another source's.
const adoptCure = "if both databases are in use, give this one topics of its own in the mapping; if the database was moved or upgraded " +
	"to a new server, or the table has another name now, and nothing writes to the topics any more: `backstory backfill --reconcile --adopt-topics`"

// check refuses a record that is of another source.
func (s *sources) check(topic string, rec *transform.Stored) error {
	if rec.Source == s.own || s.table.Adopts || slices.Contains(s.learned, rec.Source) {
		return nil
	}
	former := s.table.FormerOf(rec.Source)
	if former != nil && former.Wrote(rec.Topic, rec.Partition, rec.Offset) {
		return nil
	}
	r := &Refusal{
		Thing:   fmt.Sprintf("topic %s partition %d", topic, rec.Partition),
		Problem: fmt.Sprintf("the record at offset %d is of source %s, and the bridge's own is %s", rec.Offset, rec.Source, s.own),
		Cure:    adoptCure,
		Foreign: rec.Source,
	}
	if former != nil {
		r.Problem += ", which had taken the topic over before that record was written"
		r.Cure = "stop the bridge of the former source, which still writes; then " + adoptCure
	}
	return r
}

// learn notes former sources that a record of the own source tells of.
func (s *sources) learn(rec *transform.Stored) {
	if rec.Source != s.own {
		return
	}
	for _, f := range rec.Former {
		if f != s.own && s.table.FormerOf(f) == nil && !slices.Contains(s.learned, f) {
			s.learned = append(s.learned, f)
		}
	}
}

// checkSources refuses topics whose newest records are of another source, with one
// *Refusal for each such topic. It looks at those that are there and were not looked
// at before, and needs nothing but their layouts: no topic is made, and no session
// fenced, before it has passed.
func (p *Producer) checkSources(ctx context.Context, layouts []layout) error {
	var cursors []*cursor
	topics := map[*cursor]*topicLog{}
	for i, t := range p.topics {
		if t.table == nil || t.looked || layouts[i].err != nil {
			continue
		}
		// Without a table nothing else that may be wrong in a record comes first.
		for _, c := range newCursors(t.name, len(layouts[i].leaders), nil, t.kind, nil) {
			cursors, topics[c] = append(cursors, c), t
		}
	}
	cursors, err := p.reader.ended(ctx, cursors)
	if err != nil {
		return err
	}
	newest, err := p.newestOf(ctx, cursors, p.reader.stored)
	if err != nil {
		return err
	}
	byTopic := map[*topicLog][]*transform.Stored{}
	for i, rec := range newest {
		if rec != nil {
			t := topics[cursors[i]]
			rec.Topic = t.kind
			p.tables[t.table].sources.learn(rec)
			byTopic[t] = append(byTopic[t], rec)
		}
	}
	var wrong []error
	for i, t := range p.topics {
		if layouts[i].err == nil {
			t.looked = true
			wrong = append(wrong, p.judgeSources(t, byTopic[t]))
		}
	}
	return errors.Join(wrong...)
}

// endPatience is how long a new leader may be unable to tell where its log ends.
const endPatience = 5 * time.Second

// ended returns the cursors whose partitions have an end that the leader can tell, with
// their place among these as index. One that leads since a moment ago can't, until its
// followers have come as far as its predecessor had told; where they are away that may
// last, and only the markers of the fence tell then what stands in the log. The fold
// compares all of it.
func (r *reader) ended(ctx context.Context, cursors []*cursor) ([]*cursor, error) {
	for i, c := range cursors {
		c.index = i
	}
	again, since := r.attempts("read the ends of the topics"), time.Now()
	found, open := make([]int64, len(cursors)), cursors
	for len(open) > 0 {
		left, err := r.offsetsOnce(ctx, open, atEnd, found)
		open = left
		if len(left) == 0 {
			again.over()
			break
		}
		if errors.Is(err, kafka.OffsetNotAvailable) && time.Since(since) > endPatience {
			break
		}
		if err := again.wait(ctx, err); err != nil {
			return nil, err
		}
	}
	told := slices.DeleteFunc(slices.Clone(cursors), func(c *cursor) bool { return slices.Contains(open, c) })
	for i, c := range told {
		c.index = i
	}
	return told, nil
}

// lookAgain is checkSources for topics that were found before: whoever fenced this
// instance since then may be of another source, and in the right.
func (p *Producer) lookAgain(ctx context.Context) error {
	return p.insist(ctx, "look at the newest records", func(ctx context.Context) error {
		layouts, err := p.client.leaders(ctx, p.names...)
		if err != nil {
			return err
		}
		return p.checkSources(ctx, layouts)
	})
}

// Foreign reports whether topics have newest records of sources that their tables did
// not have before, as Open has found them where it was to adopt them.
func (p *Producer) Foreign() bool { return p.foreign }

// judgeSources judges the newest records of one topic. What is taken over is told.
func (p *Producer) judgeSources(t *topicLog, newest []*transform.Stored) error {
	told := map[string]*transform.Stored{} // by foreign source: the record with the highest place
	for _, rec := range newest {
		s := &p.tables[t.table].sources
		if err := s.check(t.name, rec); err != nil {
			return err
		}
		if known := told[rec.Source]; rec.Source != s.own && (known == nil || rec.Place.Compare(known.Place) > 0) {
			told[rec.Source] = rec
		}
	}
	for source, rec := range told {
		if t.table.Adopts && t.table.FormerOf(source) == nil {
			p.foreign = true
			p.log.Warn("the topic has records of another source and is taken over", "topic", t.name, "source", source,
				"own_source", p.tables[t.table].sources.own, "lsn", rec.Place.Pos.LSN)
		}
	}
	return nil
}

// share encodes again what the records of a table share if the table has former
// sources that they do not name yet.
func (t *tableTopics) share() {
	if t.shared[transform.Events].text != nil && t.named == len(t.table.Former) {
		return
	}
	for _, kind := range []transform.Topic{transform.Events, transform.Latest} {
		t.shared[kind] = shareHeaders(t.sources.own, t.table, kind)
	}
	t.named = len(t.table.Former)
}

// sourceOf reads ce_source. Records of the latest topic that an earlier version has
// written have no fragment. An allocation is made for a source only that is not that
// of the record before.
func (p *parser) sourceOf(topic transform.Topic) string {
	b := p.values[slotSource]
	if topic == transform.Latest {
		b = bytes.TrimSuffix(b, []byte(LatestFragment))
	}
	keep(&p.source, b)
	return p.source
}

// formerText is a list of sources as ce_formersource has it, and its parts.
type formerText struct {
	raw   string
	parts []string
}

func (t *formerText) parse(b []byte) []string {
	if b == nil {
		return nil
	}
	if t.raw != string(b) {
		t.raw = string(b)
		t.parts = strings.Fields(t.raw)
	}
	return t.parts
}
