package sink

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/segmentio/kafka-go/protocol/addpartitionstotxn"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

// checkRights asks whether the bridge has the rights that the fence and the fold
// need: a bridge without them must be refused before it has a slot. Nothing
// changes, also for an instance that runs. Without a topic there is nothing to ask
// for.
func (p *Producer) checkRights(ctx context.Context) error {
	if len(p.topics) == 0 {
		return nil
	}
	return errors.Join(p.mayJoin(ctx), p.mayRead(ctx))
}

// mayRead asks for something of each partition that needs the right to read.
// Brokers that cannot be asked refuse the fold.
func (p *Producer) mayRead(ctx context.Context) error {
	return p.insist(ctx, "ask for the right to read", func(ctx context.Context) error {
		_, err := p.strangers(ctx, noProducer)
		if errors.Is(err, errNoDescribe) {
			return nil
		}
		return err
	})
}

// mayJoin asks for the right to write as the transactional id, and to write each
// topic. It asks to add the partitions to a transaction of a producer that nobody
// is: brokers look at the rights first and turn the stranger away then.
func (p *Producer) mayJoin(ctx context.Context) error {
	req := p.joinRequest(session{id: math.MaxInt64})
	return p.insist(ctx, "ask for the rights of transactional id "+p.transactionalID, func(ctx context.Context) error {
		res, err := p.client.roundTrip(ctx, nil, req)
		if err != nil {
			return err
		}
		err = p.judgeJoin(res.(*addpartitionstotxn.Response))
		var stranger *SessionError
		if errors.As(err, &stranger) {
			return nil
		}
		return err
	})
}

// checkReplication refuses topics that are to be made with more replicas than
// there are brokers.
func (p *Producer) checkReplication(ctx context.Context, absent []*topicLog) error {
	if len(absent) == 0 {
		return nil
	}
	res, err := p.client.roundTrip(ctx, nil, &metadata.Request{TopicNames: p.names})
	if err != nil {
		return fmt.Errorf("count the brokers: %w", err)
	}
	brokers := len(res.(*metadata.Response).Brokers)
	var wrong []error
	for _, t := range absent {
		if _, n := t.shape(); int(n) > brokers {
			wrong = append(wrong, &Refusal{
				Thing: "topic " + t.name, Cure: fewerReplicas,
				Problem: fmt.Sprintf("it is to be made with %d replicas, and the cluster has %d broker(s)", n, brokers),
			})
		}
	}
	return errors.Join(wrong...)
}
