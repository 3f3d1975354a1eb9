package sink

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/segmentio/kafka-go/protocol/addpartitionstotxn"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

// checkRights asks whether the fence will be let through: the right to write as
// the transactional id, and to write each topic. A bridge without them must be
// refused before it has a slot. It asks to add the partitions to a transaction of
// a producer that nobody is: brokers look at the rights first and turn the stranger
// away then, so nothing changes, also for an instance that runs.
func (p *Producer) checkRights(ctx context.Context) error {
	req := p.joinRequest(session{id: math.MaxInt64})
	if len(req.Topics) == 0 {
		return nil
	}
	step := "ask for the rights of transactional id " + p.transactionalID
	return p.insist(ctx, step, func(ctx context.Context) error {
		res, err := p.client.roundTrip(ctx, nil, req)
		if err != nil {
			return err
		}
		err = p.judgeJoin(step, res.(*addpartitionstotxn.Response))
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
