package bridge

import (
	"context"
	"time"
)

// Times of the watch on the topics.
const (
	topicsWatch   = 10 * time.Second // between two looks
	topicsTimeout = 30 * time.Second // of one look
)

// watchTopics looks every ten seconds whether the topics' settings and partitions are
// as they must be, and ends with the refusal when they are not, while the events are
// whole: a retention or a compaction that was set by mistake removes them soon.
// Whether the brokers can be reached is not its business: it tries again. It returns
// nil when ctx ends.
func (b *Bridge) watchTopics(ctx context.Context) error {
	ticker := time.NewTicker(topicsWatch)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := b.recheckTopics(ctx); err != nil {
			return err
		}
	}
}

// recheckTopics looks once. Its error is a refusal; that the brokers could not be asked
// is only told, once until they answer.
func (b *Bridge) recheckTopics(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, topicsTimeout)
	defer cancel()
	err := b.sink.Recheck(ctx)
	switch {
	case err == nil:
		b.unasked = false
	case refuses(err):
		return err
	case !b.unasked && ctx.Err() == nil:
		b.unasked = true
		b.log.Warn("the topics' settings cannot be looked at, trying again", "err", err)
	}
	return nil
}
