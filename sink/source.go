package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	for i, t := range p.topics {
		if t.table == nil || t.looked || layouts[i].err != nil {
			continue
		}
		cursors = append(cursors, newCursors(t.name, len(layouts[i].leaders), t.table, t.kind, nil)...)
	}
	for i, c := range cursors {
		c.index = i
	}
	newest, err := p.newestOf(ctx, cursors, p.reader.stored)
	if err != nil {
		return err
	}
	for _, rec := range newest {
		if rec != nil {
			p.tables[rec.Table].sources.learn(rec)
		}
	}
	var wrong []error
	for i, t := range p.topics {
		if layouts[i].err != nil {
			continue
		}
		t.looked = true
		wrong = append(wrong, p.judgeSources(t, newest))
	}
	return errors.Join(wrong...)
}

// judgeSources judges the newest records of one topic, of which newest has others
// too. What is taken over is told.
func (p *Producer) judgeSources(t *topicLog, newest []*transform.Stored) error {
	told := map[string]*transform.Stored{} // by foreign source: the record with the highest place
	for _, rec := range newest {
		if rec == nil || rec.Table != t.table || rec.Topic != t.kind {
			continue
		}
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
			p.log.Warn("the topic has records of another source: it is taken over", "topic", t.name, "of", source,
				"for", p.tables[t.table].sources.own, "lsn", rec.Place.Pos.LSN, "key", string(rec.Key), "version", rec.Version)
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
