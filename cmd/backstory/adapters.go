package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"backstory/capture"
	"backstory/internal/bridge"
	"backstory/internal/state"
	"backstory/sink"
	"backstory/transform"
)

// database is capture as the bridge sees it.
type database struct {
	*capture.Database
	mapping *transform.Mapping
	topics  *topics
	store   *state.Store
	repair  bool // a slot that is lost may be made anew
	adopt   bool // the state and the topics may be another server's
	// recognize is asked when the tables are known, before the topics are looked at.
	recognize func([]capture.TableInfo, capture.Identity) error
	assent    *assent
	given     bool // this bridge's assent
	// readTimeout is backfill.statement_timeout.
	readTimeout time.Duration
}

// Prepare looks at everything before it makes anything: a mapping that names
// unknown columns, or topics that would be refused, must not leave a slot behind
// for which the server keeps WAL.
func (d *database) Prepare(ctx context.Context, create bool) (*capture.Prepared, error) {
	d.Unbind() // the former session's server may be a standby by now, or away
	if d.repair {
		if err := d.dropLost(ctx); err != nil {
			return nil, err
		}
	}
	report, err := d.Doctor(ctx)
	if err != nil {
		return nil, err
	}
	if err := report.Err(); err != nil {
		return nil, err
	}
	if err := d.mapping.Bind(report.Tables); err != nil {
		return nil, err
	}
	if !create || d.repair {
		if err := d.sameSource(ctx, report.Identity); err != nil {
			return nil, err
		}
	}
	if err := d.recognize(report.Tables, report.Identity); err != nil {
		return nil, err
	}
	if err := d.topics.open(ctx, report.Identity); err != nil {
		return nil, err
	}
	if !d.given {
		d.assent.give()
		d.given = true
	}
	if err := d.assent.wait(ctx); err != nil {
		return nil, err
	}
	if d.adopt {
		if err := d.takeOver(ctx, report.Identity); err != nil {
			return nil, err
		}
		d.adopt = false
	}
	return d.Database.Prepare(ctx)
}

// takeOver binds the state to the server that the database was moved to. It comes when
// all else is in order, so that a start which is refused leaves the state to the former
// one. What the slot has not sent yet is left to the comparison: of a logical copy it
// may be what the former server has sent.
func (d *database) takeOver(ctx context.Context, id capture.Identity) error {
	if !d.store.Elsewhere(id) && !d.topics.Foreign() {
		return nil // nothing was moved
	}
	if err := d.SkipToEnd(ctx); err != nil {
		return err
	}
	return d.store.Adopt(id)
}

// dropLost makes room for a new slot.
func (d *database) dropLost(ctx context.Context) error {
	slot, err := d.SlotStatus(ctx)
	if err != nil || !slot.Exists || !slot.Lost() {
		return err
	}
	return d.DropLost(ctx)
}

// sameSource compares the database with what the state remembers: another
// cluster first, which has no slot of ours either.
func (d *database) sameSource(ctx context.Context, id capture.Identity) error {
	if d.adopt {
		return nil // see Prepare
	}
	if _, err := d.store.Bind(id); err != nil || d.repair {
		return err
	}
	return d.needSlot(ctx)
}

// needSlot refuses to go on without the slot: a new one would begin now, and the
// changes between the state's position and now would be in no topic.
func (d *database) needSlot(ctx context.Context) error {
	slot, err := d.SlotStatus(ctx)
	if err != nil || slot.Exists {
		return err
	}
	return &capture.Refusal{
		Thing:   "slot " + slot.Name,
		Problem: "it is gone, and with it the changes since the state's position",
		Cure: "`backstory backfill --reconcile`: it makes a new slot, compares the tables with the state and publishes " +
			"the differences (with --dry-run it only counts them)",
	}
}

func (d *database) Open(ctx context.Context, start capture.LSN) (bridge.Source, error) {
	stream, err := d.Database.Open(ctx, start)
	if err != nil {
		return nil, err // not stream: a nil pointer in an interface is no nil
	}
	return stream, nil
}

func (d *database) OpenReader(ctx context.Context, table capture.TableInfo, where string) (bridge.Reader, error) {
	reader, err := d.Database.OpenReader(ctx, table, capture.ReadOptions{Where: where, StatementTimeout: d.readTimeout})
	if err != nil {
		return nil, err
	}
	return reader, nil
}

// topics is the sink as the bridge sees it. The name of its session is made of
// the cluster that the database turns out to be, so it is opened by Prepare.
type topics struct {
	cfg     sink.Config
	mapping *transform.Mapping
	slot    string
	timeout time.Duration // of the first connection
	log     *slog.Logger
	reg     prometheus.Registerer

	*sink.Producer // nil before open
}

// open connects and makes or checks the topics, once.
func (t *topics) open(ctx context.Context, id capture.Identity) error {
	if t.Producer != nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, t.timeout, fmt.Errorf(
		"no answer within bridge.startup_timeout (%s); check kafka.brokers and kafka.tls, and that the brokers are up", t.timeout))
	defer cancel()
	producer, err := sink.Open(ctx, t.cfg, t.mapping, id, t.slot, t.log, t.reg)
	if err != nil {
		return fmt.Errorf("open kafka: %w", err)
	}
	t.Producer = producer
	return nil
}

func (t *topics) Encode(events []transform.Event) (bridge.Publication, error) {
	p, err := t.Producer.Encode(events)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (t *topics) EncodeState(events []transform.Event, below []int64) (bridge.Publication, error) {
	p, err := t.Producer.EncodeState(events, below)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Close ends the session, if there is one.
func (t *topics) Close() error {
	if t.Producer == nil {
		return nil
	}
	return t.Producer.Close()
}
