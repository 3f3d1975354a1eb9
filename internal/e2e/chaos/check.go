package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"backstory/internal/e2e/audit"
	"backstory/internal/e2e/stored"
)

// Bounds of waiting with all faults over.
const (
	recoverLimit = 90 * time.Second
	drainLimit   = 3 * time.Minute
	pollStatus   = 50 * time.Millisecond
)

// until repeats f until it returns nil.
func (w *world) until(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	deadline := time.Now().Add(limit)
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := f(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %w", limit, err)
		}
		if err := w.rest(ctx, pollStatus); err != nil {
			return err
		}
	}
}

// streaming waits until the instance streams.
func (w *world) streaming(ctx context.Context, i *instance) error {
	err := w.until(ctx, recoverLimit, func(ctx context.Context) error {
		s, err := i.status(ctx)
		if err == nil && s.Phase != "streaming" {
			err = fmt.Errorf("phase %s, %s", s.Phase, s.Error)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("bridge %s does not stream: %w", i.name, err)
	}
	w.note("bridge %s streams", i.name)
	return nil
}

// recovered ends all faults and waits until an instance streams.
func (w *world) recovered(ctx context.Context) error {
	if err := w.mendAll(ctx); err != nil {
		return err
	}
	_, err := w.active(ctx, recoverLimit, func(s status) error { return nil })
	return err
}

// active returns the instance that streams and fulfils ok.
func (w *world) active(ctx context.Context, limit time.Duration, ok func(status) error) (*instance, error) {
	var found *instance
	err := w.until(ctx, limit, func(ctx context.Context) error {
		var errs []error
		for _, i := range w.fleet {
			if !i.on() {
				continue
			}
			s, err := i.status(ctx)
			if err == nil && s.Phase != "streaming" {
				err = fmt.Errorf("phase %s, %s", s.Phase, s.Error)
			}
			if err == nil {
				err = ok(s)
			}
			if err == nil {
				found = i
				return nil
			}
			errs = append(errs, fmt.Errorf("bridge %s: %w", i.name, err))
		}
		return errors.Join(errs...)
	})
	return found, err
}

// checkpoint ends all faults, holds the writers, lets everything drain, and
// compares what they committed with both topics and the state.
func (w *world) checkpoint(ctx context.Context) error {
	if err := w.mendAll(ctx); err != nil {
		return err
	}
	w.hold.Lock()
	defer w.hold.Unlock()
	w.note("the writers are held")
	if err := w.ready(ctx); err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	conn, err := pgx.Connect(ctx, w.pg.DSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	active, err := w.drained(ctx, conn)
	if err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	for _, i := range w.fleet { // all, so that none takes over
		if i.on() {
			i.want(false)
			defer i.want(true)
		}
	}
	for _, i := range []*instance{w.other(active), active} {
		if err := i.stop(ctx); err != nil {
			return err
		}
	}
	return w.compare(ctx, conn, active)
}

func (w *world) other(i *instance) *instance {
	if i == w.fleet[0] {
		return w.fleet[1]
	}
	return w.fleet[0]
}

// drained waits until an instance has confirmed everything that was committed,
// has nothing to read, and returns it.
func (w *world) drained(ctx context.Context, conn *pgx.Conn) (*instance, error) {
	var text string
	if err := conn.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&text); err != nil {
		return nil, err
	}
	end, err := pglogrepl.ParseLSN(text)
	if err != nil {
		return nil, err
	}
	told := time.Now()
	return w.active(ctx, drainLimit, func(s status) error {
		if time.Since(told) > 5*time.Second {
			told = time.Now()
			w.note("not drained yet: %+v, want %s", s, end)
		}
		for _, t := range s.Tables {
			if t.Backfill.Phase != "done" || t.Again > 0 {
				return fmt.Errorf("backfill %s, %d rows to read again", t.Backfill.Phase, t.Again)
			}
		}
		confirmed, err := pglogrepl.ParseLSN(s.Confirmed)
		if err == nil && confirmed < end {
			err = fmt.Errorf("confirmed %s, want %s", confirmed, end)
		}
		return err
	})
}

// compare is the proof.
func (w *world) compare(ctx context.Context, conn *pgx.Conn, active *instance) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	var version int
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return err
	}
	history, changes, err := audit.ReadHistory(ctx, conn, version >= 140000)
	if err != nil {
		return err
	}
	events, partitions, err := w.read(ctx, eventsTopic)
	if err != nil {
		return err
	}
	latest, _, err := w.read(ctx, latestTopic)
	if err != nil {
		return err
	}
	report := audit.Compare(history, events, latest, partitions)
	w.compared++
	line := fmt.Sprintf("compared: %d committed row changes of %d keys, %d events, %d latest records: %d wrong",
		changes, report.Keys, report.Events, report.Latest, report.Wrong)
	w.note("%s", line)
	fmt.Fprintln(w.log, line)
	if report.Wrong > 0 {
		return errors.Join(fmt.Errorf("the topics are not what was committed\n%s", report), w.dump("events.jsonl", events), w.dump("latest.jsonl", latest))
	}
	if err := stored.Compare(ctx, active.state, "Product", latest); err != nil {
		return fmt.Errorf("bridge %s: %w", active.name, err)
	}
	return nil
}

// read returns a topic as two clients see it, which must be the same.
func (w *world) read(ctx context.Context, topic string) ([]audit.Record, int32, error) {
	records, partitions, err := audit.ReadTopic(ctx, w.kafka.Internal(), topic)
	if err != nil {
		return nil, 0, err
	}
	others, err := audit.ReadByReader(ctx, w.kafka.Internal(), topic, partitions)
	if err != nil {
		return nil, 0, err
	}
	if len(others) != len(records) {
		return nil, 0, fmt.Errorf("%s: %d records for franz-go, %d for kafka-go", topic, len(records), len(others))
	}
	ids := map[[2]int64]*audit.Record{}
	for i := range others {
		ids[[2]int64{int64(others[i].Partition), others[i].Offset}] = &others[i]
	}
	for i := range records {
		r := &records[i]
		o := ids[[2]int64{int64(r.Partition), r.Offset}]
		if o == nil || o.Key != r.Key || !bytes.Equal(o.Value, r.Value) || o.Headers["ce_id"] != r.Headers["ce_id"] {
			return nil, 0, fmt.Errorf("%s %d/%d: franz-go has %+v, kafka-go %+v", topic, r.Partition, r.Offset, r, o)
		}
	}
	return records, partitions, nil
}

// dump keeps a topic as text.
func (w *world) dump(name string, records []audit.Record) (err error) {
	f, err := os.Create(filepath.Join(w.dir, name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	encoder := json.NewEncoder(f)
	for i := range records {
		r := &records[i]
		line := map[string]any{"partition": r.Partition, "offset": r.Offset, "key": r.Key, "headers": r.Headers, "value": json.RawMessage(r.Value)}
		if r.Value == nil {
			line["value"] = nil
		}
		if err := encoder.Encode(line); err != nil {
			return err
		}
	}
	return nil
}
