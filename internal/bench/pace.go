package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// pacer writes transactions at a rate, open loop: one that is late is written at
// once, and the clock is never stretched.
type pacer struct {
	l       *lab
	perSec  int
	size    int // updates of a transaction
	total   int // transactions
	writers int // connections
	span    int // rows that are updated, in an order that meets each once
	// committed is told of each transaction: its number, when its row was stamped
	// by the server's clock, and when the writer knew that it is committed. It is
	// called by several goroutines. May be nil.
	committed func(i int, stamp, known time.Time)

	next, late atomic.Int64
}

// lateness is from when on a transaction counts as late.
const lateness = 20 * time.Millisecond

// rowOf is the id of the row that the i-th update changes.
func (p *pacer) rowOf(i int) int64 { return 1 + int64(i)*7919%int64(p.span) }

// run writes until the last transaction or the end of ctx, which is no error.
func (p *pacer) run(ctx context.Context) error {
	start := time.Now().Add(50 * time.Millisecond)
	g, ctx := errgroup.WithContext(ctx)
	for range p.writers {
		g.Go(func() error { return p.write(ctx, start) }) // ends with the last transaction
	}
	return g.Wait()
}

func (p *pacer) write(ctx context.Context, start time.Time) error {
	conn, err := pgx.Connect(ctx, p.l.pg.DSN(database))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for {
		i := int(p.next.Add(1) - 1)
		if i >= p.total {
			return nil
		}
		due := start.Add(time.Duration(float64(i) / float64(p.perSec) * float64(time.Second)))
		if wait := time.Until(due); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return nil
			}
		} else if -wait > lateness {
			p.late.Add(1)
		}
		if err := p.transaction(ctx, conn, i); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("write transaction %d: %w", i, err)
		}
	}
}

func (p *pacer) transaction(ctx context.Context, conn *pgx.Conn, i int) error {
	var stamp time.Time
	var err error
	if p.size == 1 {
		err = conn.QueryRow(ctx, "UPDATE products SET price = price + 0.01, updated_at = clock_timestamp() WHERE id = $1 RETURNING updated_at",
			p.rowOf(i)).Scan(&stamp)
	} else {
		_, err = conn.Exec(ctx, "UPDATE products SET price = price + 0.01, updated_at = clock_timestamp() WHERE id = ANY($1)", p.rowsOf(i))
	}
	if err == nil && p.committed != nil {
		p.committed(i, stamp, time.Now())
	}
	return err
}

func (p *pacer) rowsOf(i int) []int64 {
	ids := make([]int64, p.size)
	for j := range ids {
		ids[j] = p.rowOf(i*p.size + j)
	}
	return ids
}
