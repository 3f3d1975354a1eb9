package sink

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of reading. A leader's pages are read one ahead, so 2 × pageBytes are
// held for each leader, and more only where one record batch is larger.
const (
	pageBytes    = 8 << 20 // of one answer
	minEachBytes = 64 << 10
	pagesAhead   = 2
	fetchMaxWait = 500 * time.Millisecond // how long a broker holds a fetch at the log's end
)

// forEver is the end of a cursor that follows its partition.
const forEver = math.MaxInt64

// cursor is a partition that is being read, from next up to end. While a run is
// under way, next and hollow belong to it.
type cursor struct {
	topic     string
	partition int32
	next      int64
	end       int64
	parser    *parser // of its topic; may be shared with other cursors of the run
	index     int     // the reader's user may number its cursors
	hollow    int     // answers in a row that had nothing where something was due
	// overtaken is the log's start when it was found above next; 0: it never was.
	overtaken atomic.Int64
}

func (c *cursor) done() bool { return c.next >= c.end }

// failed says which partition err is about.
func (c *cursor) failed(err error) error {
	return fmt.Errorf("topic %s partition %d: %w", c.topic, c.partition, err)
}

// part is what one answer has of a partition: record batches to be read from an
// offset on, valid while the part is handled.
type part struct {
	cursor  *cursor
	from    int64
	records []byte
}

// page is one answer of a leader.
type page struct {
	request *fetchRequest
	parts   []part
	free    chan<- *page
}

// reader reads partitions from their leaders, whoever leads at the moment. It
// outlives restarts of brokers: what can be tried again is, until ctx is done.
type reader struct {
	client *client
	log    *slog.Logger
	// eachBytes overrides, where it is not 0, how much of one partition an
	// answer may have.
	eachBytes int32
	// patience is how long a topic may be unknown; see unknownPatience.
	patience time.Duration
}

func newReader(c *client, log *slog.Logger) *reader {
	return &reader{client: c, log: log, patience: unknownPatience}
}

// run reads the cursors to their ends and hands out what it finds, each
// partition in order, to fn in the caller's goroutine. It returns when all
// cursors are done, fn fails or ctx is done; its goroutines have ended by then.
func (r *reader) run(ctx context.Context, cursors []*cursor, fn func(*part) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pages := make(chan *page)
	var fetchErr error
	go func() { // ends with the cursors or with ctx
		defer close(pages)
		fetchErr = r.follow(ctx, cursors, pages)
	}()
	err := handle(pages, fn)
	cancel()
	for range pages { // until the goroutine has ended
	}
	if err != nil {
		return err
	}
	return fetchErr
}

func handle(pages <-chan *page, fn func(*part) error) error {
	for p := range pages {
		for i := range p.parts {
			if err := fn(&p.parts[i]); err != nil {
				return err
			}
		}
		p.free <- p
	}
	return nil
}

// follow reads the cursors until they are done: from one leader in this
// goroutine, from several in one each. A partition whose leader has changed is
// looked up again.
func (r *reader) follow(ctx context.Context, cursors []*cursor, out chan<- *page) error {
	again := r.attempts("read the topics")
	for {
		cursors = unfinished(cursors)
		if len(cursors) == 0 {
			return nil
		}
		groups, err := r.byLeader(ctx, cursors)
		if err == nil && len(groups) > 1 {
			again.over()
			return r.followEach(ctx, groups, out)
		}
		if err == nil {
			err = r.readFrom(ctx, groups[0], again, out)
		}
		if err == nil {
			continue
		}
		if err := again.wait(ctx, err); err != nil {
			return err
		}
	}
}

func unfinished(cursors []*cursor) []*cursor {
	left := make([]*cursor, 0, len(cursors))
	for _, c := range cursors {
		if !c.done() {
			left = append(left, c)
		}
	}
	return left
}

// followEach follows groups of cursors side by side. The first error ends all.
func (r *reader) followEach(ctx context.Context, groups []group, out chan<- *page) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	for _, g := range groups {
		all.Go(func() {
			if err := r.follow(ctx, g.cursors, out); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// readFrom reads from one leader until the cursors are done, which gives nil, or
// until the leader fails or has lost a partition.
func (r *reader) readFrom(ctx context.Context, g group, again *attempts, out chan<- *page) error {
	free := make(chan *page, pagesAhead)
	for range pagesAhead {
		free <- &page{request: &fetchRequest{}, free: free}
	}
	cursors := g.cursors
	for turn := 0; ; turn++ {
		if cursors = unfinished(cursors); len(cursors) == 0 {
			return nil
		}
		p, err := take(ctx, free)
		if err != nil {
			return err
		}
		r.ask(p.request, g.leader, cursors, turn)
		m, err := r.client.roundTrip(ctx, nil, p.request)
		if err != nil {
			return err
		}
		if err = r.accept(ctx, p, m.(*fetchResponse), cursors); err == nil {
			again.over()
		}
		if len(p.parts) == 0 {
			free <- p
		} else if sendErr := send(ctx, out, p); sendErr != nil {
			return sendErr
		}
		if err != nil {
			return err
		}
	}
}

func take(ctx context.Context, free <-chan *page) (*page, error) {
	select {
	case p := <-free:
		return p, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func send(ctx context.Context, out chan<- *page, p *page) error {
	select {
	case out <- p:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ask fills in the next request. The partitions take turns at the front: a
// broker fills its answer in the order of the request, and gives the first one
// at least a whole batch.
func (r *reader) ask(q *fetchRequest, leader int32, cursors []*cursor, turn int) {
	if cap(q.body) > 2*pageBytes {
		q.body = nil
	}
	q.broker, q.clientID = leader, r.client.cfg.ClientID
	q.maxWait, q.minBytes, q.maxBytes = fetchMaxWait, 1, pageBytes
	if q.eachBytes = r.eachBytes; q.eachBytes == 0 {
		q.eachBytes = max(pageBytes/int32(len(cursors)), minEachBytes)
	}
	q.partitions = q.partitions[:0]
	for i := range cursors {
		c := cursors[(turn+i)%len(cursors)]
		q.partitions = append(q.partitions, wanted{c.topic, c.partition, c.next})
	}
}
