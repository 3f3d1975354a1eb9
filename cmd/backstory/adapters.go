package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"backstory/capture"
	"backstory/internal/bridge"
	"backstory/sink"
	"backstory/transform"
)

// database is capture as the bridge sees it.
type database struct {
	*capture.Database
	identity capture.Identity // of the newest Prepare
}

func (d *database) Prepare(ctx context.Context, create bool) (*capture.Prepared, error) {
	if !create {
		if err := d.needSlot(ctx); err != nil {
			return nil, err
		}
	}
	prepared, err := d.Database.Prepare(ctx)
	if err != nil {
		return nil, err
	}
	d.identity = prepared.Identity
	return prepared, nil
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
		Cure: "move the state directory away and start again: the state is rebuilt from the topics, " +
			"a new slot is made, and the tables are compared with it, so that the differences become events",
	}
}

func (d *database) Open(ctx context.Context, start capture.LSN) (bridge.Source, error) {
	stream, err := d.Database.Open(ctx, start)
	if err != nil {
		return nil, err // not stream: a nil pointer in an interface is no nil
	}
	return stream, nil
}

func (d *database) OpenReader(ctx context.Context, table capture.TableInfo) (bridge.Reader, error) {
	reader, err := d.Database.OpenReader(ctx, table)
	if err != nil {
		return nil, err
	}
	return reader, nil
}

func (d *database) Slot(ctx context.Context) (capture.SlotStatus, error) {
	return d.SlotStatus(ctx)
}

// topics is the sink as the bridge sees it. It connects at the first Fence: the
// name of the session is made of the cluster that Prepare has found, and nothing
// of Kafka may be read before the slot is taken.
type topics struct {
	cfg     sink.Config
	mapping *transform.Mapping
	db      *database
	slot    string
	timeout time.Duration // of the first connection
	log     *slog.Logger
	reg     prometheus.Registerer

	*sink.Producer // nil before the first Fence
}

func (t *topics) Fence(ctx context.Context) error {
	if t.Producer == nil {
		bound, cancel := context.WithTimeout(ctx, t.timeout)
		defer cancel()
		producer, err := sink.Open(bound, t.cfg, t.mapping, t.db.identity, t.slot, t.log, t.reg)
		if err != nil {
			return fmt.Errorf("open kafka: %w", err)
		}
		t.Producer = producer
	}
	return t.Producer.Fence(ctx)
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
