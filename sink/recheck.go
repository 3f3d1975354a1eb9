package sink

import (
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go/protocol/describeconfigs"
)

// Recheck looks once whether the topics still have the partitions and the settings
// that Open insists on. It returns a *Refusal for each that must be mended, joined,
// and any other error if the brokers could not be asked, whatever the reason: the
// data path notices that by itself. Unlike the rest it may be called at any time
// after Open, also while publications are under way.
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
	return errors.Join(wrong...)
}

// notAsked hides that an answer was a refusal: that a right has been withdrawn, say,
// is for those to report who need it.
func notAsked(err error) error {
	return fmt.Errorf("look at the topics' settings: %s", err.Error())
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
