package sink

import (
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go/protocol/describeconfigs"

	"backstory/transform"
)

// Recheck looks once whether the topics still have the partitions and the settings
// that Open insists on, and whether a record of another source has come. It returns a
// *Refusal for each that must be mended, joined, and any other error if the brokers
// could not be asked, whatever the reason: the data path notices that by itself. Unlike
// the rest it may be called at any time after Open, also while publications are under
// way.
func (p *Producer) Recheck(ctx context.Context) error {
	layouts, err := p.client.leaders(ctx, p.names...)
	if err != nil {
		return notAsked(err)
	}
	res, err := p.client.roundTrip(ctx, nil, p.describeRequest())
	if err != nil {
		return notAsked(err)
	}
	configs, err := p.readConfigs(res.(*describeconfigs.Response))
	if err != nil {
		return notAsked(err)
	}
	var wrong []error
	for i, t := range p.topics {
		wrong = append(wrong, t.sameCount(&layouts[i]))
		wrong = append(wrong, t.checkSettings(configs[i], layouts[i].replicas)...)
	}
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	return p.checkBeyond(ctx)
}

// checkBeyond looks at what stands behind all that the session has encoded, for a
// record that the bridge has not written. One of its own source is from an instance
// that has taken over: that is for the data path to find out.
func (p *Producer) checkBeyond(ctx context.Context) error {
	if p.over.Load() {
		return nil
	}
	var cursors []*cursor
	var parts []*partition
	for _, t := range p.topics {
		if t.table == nil {
			continue
		}
		for i, c := range newCursors(t.name, len(t.parts), t.table, t.kind, &p.tables[t.table].sources) {
			c.index = len(cursors)
			cursors, parts = append(cursors, c), append(parts, &t.parts[i])
		}
	}
	r := newReader(p.client, p.log)
	ends := make([]int64, len(cursors))
	if left, err := r.offsetsOnce(ctx, cursors, atEnd, ends); len(left) > 0 {
		return notAsked(err)
	}
	var beyond []*cursor
	for i, c := range cursors {
		// Read behind the end: what was encoded meanwhile only makes it higher.
		if c.next, c.end = parts[i].reach.Load(), ends[i]; c.next < c.end {
			beyond = append(beyond, c)
		}
	}
	if len(beyond) == 0 || p.over.Load() { // a fence of this session, for one, leaves markers
		return nil
	}
	err := r.stored(ctx, beyond, func(*cursor, *transform.Stored) error { return nil })
	if refusal := new(Refusal); err != nil && !errors.As(err, &refusal) {
		return notAsked(err)
	}
	return err
}

// notAsked hides that an answer was a refusal: that a right has been withdrawn, say,
// is for those to report who need it.
func notAsked(err error) error {
	return fmt.Errorf("look at the topics: %s", err.Error())
}

// sameCount refuses another number of partitions than Open found. A topic that is not
// known at the moment has none.
func (t *topicLog) sameCount(l *layout) error {
	if have, was := len(l.leaders), len(t.parts); l.err == nil && have != 0 && have != was {
		return &Refusal{
			Thing:   "topic " + t.name,
			Problem: fmt.Sprintf("it has %d partitions, and had %d when the bridge was started", have, was),
			Cure:    countCure,
		}
	}
	return nil
}
