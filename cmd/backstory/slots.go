package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"backstory/capture"
	"backstory/internal/bridge"
	"backstory/internal/state"
	"backstory/transform"
)

// forSlot is the configuration of the bridge of one slot. That of slot 1 is as it
// stands; the others have names of their own for all that a bridge does not share.
func (c *Config) forSlot(number int) *Config {
	if number == 1 {
		return c
	}
	suffix := fmt.Sprintf("_%d", number)
	of := *c
	of.Source.Slot += suffix
	of.Source.Publication += suffix
	of.State.Dir = filepath.Join(c.State.Dir, "slot"+suffix) // inside, since the directory may be a volume's
	if of.Kafka.TransactionalID != "" {
		of.Kafka.TransactionalID += suffix
	}
	if of.Kafka.DeadLetterTopic != "" {
		of.Kafka.DeadLetterTopic += suffix
	}
	return &of
}

// part is the bridge of one slot: its configuration, its tables and, once they
// are open, its rooms.
type part struct {
	number  int
	cfg     *Config
	mapping *transform.Mapping
	bridge  *bridge.Bridge
	db      *database
}

// name is that of the slot.
func (p *part) name() string { return p.cfg.Source.Slot }

// process is what one configuration makes: a part for each slot.
type process struct {
	cfg     *Config
	mapping *transform.Mapping // the whole
	parts   []*part            // by number
	log     *slog.Logger
	reg     *prometheus.Registry // of withProcess
}

// newProcess checks the configuration, reads the mapping and divides both by
// slots. Nothing is opened.
func newProcess(cfg *Config, log *slog.Logger) (*process, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	mapping, err := transform.LoadMapping(cfg.Mapping)
	if err != nil {
		return nil, err
	}
	p := &process{cfg: cfg, mapping: mapping, log: log}
	for _, number := range mapping.Slots() {
		part := &part{number: number, cfg: cfg.forSlot(number), mapping: mapping.OfSlot(number)}
		if err := part.check(mapping); err != nil {
			return nil, err
		}
		p.parts = append(p.parts, part)
	}
	return p, nil
}

// check refuses derived names that do not fit. Each partition of a topic has one
// writer, so a dead-letter topic must be no topic of another slot either.
func (p *part) check(whole *transform.Mapping) error {
	if err := p.cfg.Validate(); err != nil {
		return fmt.Errorf("slot %d: %w", p.number, err)
	}
	topic := p.cfg.Kafka.DeadLetterTopic
	for _, t := range whole.Tables {
		if topic != "" && (topic == t.Topics.Events || topic == t.Topics.Latest) {
			return usageError{fmt.Errorf("kafka.dead_letter_topic: that of slot %d is %s, a topic of table %s", p.number, topic, t)}
		}
	}
	return nil
}

// several reports whether there is more than one slot.
func (p *process) several() bool { return len(p.parts) > 1 }

// partOf is the part that has a table.
func (p *process) partOf(t *transform.Table) *part {
	return p.parts[slices.IndexFunc(p.parts, func(part *part) bool { return part.number == t.Slot })]
}

// noStateLeft refuses a mapping that has no table for a slot whose state is still
// there: its changes are not all published, perhaps, and the server keeps WAL for it.
func (p *process) noStateLeft() error {
	for number := 1; number <= transform.MaxSlots; number++ {
		if slices.Contains(p.mapping.Slots(), number) {
			continue
		}
		of := p.cfg.forSlot(number)
		used, err := p.stateUsed(of.State)
		if err != nil {
			return fmt.Errorf("look at the state of slot %d: %w", number, err)
		}
		if used {
			return &bridge.Refusal{
				Thing:   fmt.Sprintf("slot %d", number),
				Problem: fmt.Sprintf("the mapping gives it no table, and its state is in %s", of.State.Dir),
				Cure: fmt.Sprintf("put its tables back; or give it up: let the former mapping publish all changes, stop, "+
					"SELECT pg_drop_replication_slot('%s'), drop publication %s, and move the files of its state away",
					of.Source.Slot, of.Source.Publication),
			}
		}
	}
	return nil
}

// stateUsed reports whether a state remembers anything, or is in use: a start that
// was refused leaves an empty one.
func (p *process) stateUsed(cfg state.Config) (bool, error) {
	there, err := state.Exists(cfg.Dir)
	if err != nil || !there {
		return false, err
	}
	store, err := state.Open(context.Background(), cfg, slog.New(slog.DiscardHandler), nil)
	var refusal *state.Refusal
	if errors.As(err, &refusal) {
		return true, nil // damaged, or a process has it that was started with the former mapping
	}
	if err != nil {
		return false, err
	}
	return !store.Empty(), store.Close()
}

// openDatabase makes the source of a part. The first one also looks for slots that
// the mapping has no table for any more.
func (p *process) openDatabase(of *part, log *slog.Logger, reg prometheus.Registerer) (*capture.Database, error) {
	db, err := capture.NewDatabase(of.cfg.Source.Config, of.mapping.Refs(), log, reg)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	var beside, spare []string
	for number := 1; number <= transform.MaxSlots; number++ {
		name := p.cfg.forSlot(number).Source.Slot
		switch used := slices.Contains(p.mapping.Slots(), number); {
		case used && number != of.number:
			beside = append(beside, name)
		case !used && of == p.parts[0]:
			spare = append(spare, name)
		}
	}
	db.Among(beside, spare)
	return db, nil
}

// withProcess opens a bridge for each slot, each from the durable end to the
// source, calls use, and closes in reverse.
func withProcess(ctx context.Context, cfg *Config, log *slog.Logger, use func(*process) error) (err error) {
	p, err := newProcess(cfg, log)
	if err != nil {
		return err
	}
	if err := p.noStateLeft(); err != nil {
		return err
	}
	collectEarly()
	p.reg = prometheus.NewRegistry()
	p.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	assent := newAssent(len(p.parts))
	for _, part := range p.parts {
		closePart, opened := p.open(ctx, part, assent)
		if opened != nil {
			return opened
		}
		defer func() { err = errors.Join(err, closePart()) }()
	}
	return use(p)
}

// open opens the rooms of a part. What they log and measure names the slot.
func (p *process) open(ctx context.Context, part *part, assent *assent) (closeAll func() error, err error) {
	log := p.log.With("slot", part.name())
	reg := prometheus.WrapRegistererWith(prometheus.Labels{"slot": part.name()}, p.reg)
	source, err := p.openDatabase(part, log, reg)
	if err != nil {
		return nil, err
	}
	store, err := state.Open(ctx, part.cfg.State, log, reg)
	if err != nil {
		return nil, fmt.Errorf("open the state: %w", err)
	}
	kafka := &topics{cfg: part.cfg.Kafka, mapping: part.mapping, slot: part.name(), timeout: part.cfg.Bridge.StartupTimeout, log: log, reg: reg}
	part.db = &database{Database: source, mapping: part.mapping, topics: kafka, store: store, assent: assent,
		readTimeout: part.cfg.Backfill.StatementTimeout}
	part.bridge = bridge.New(part.cfg.Bridge, part.cfg.Backfill, part.db, kafka, store, part.mapping, log, reg)
	part.db.recognize = part.bridge.Recognize
	return func() error { return errors.Join(kafka.Close(), store.Close()) }, nil
}

// run runs the bridges until ctx is done or one of them fails, which ends the
// others in order.
func (p *process) run(ctx context.Context) error {
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, len(p.parts))
	for _, part := range p.parts {
		go func() { // ends with running, after what was taken is durable, or by an error
			ended <- p.of(part, part.bridge.Run(running))
		}()
	}
	var errs []error
	for range p.parts {
		errs = append(errs, <-ended)
		stop()
	}
	return errors.Join(errs...)
}

// of says of which slot an error is, where there are several.
func (p *process) of(part *part, err error) error {
	if err == nil || !p.several() {
		return err
	}
	return fmt.Errorf("slot %s: %w", part.name(), err)
}

// assent keeps the bridges of a process from making slots before each of them has
// found everything in order: a start that one of them refuses leaves no slot of
// another behind, for which the server would keep WAL.
type assent struct {
	left atomic.Int32
	all  chan struct{} // closed when all have given theirs
}

func newAssent(bridges int) *assent {
	a := &assent{all: make(chan struct{})}
	a.left.Store(int32(bridges)) //nolint:gosec // at most transform.MaxSlots
	return a
}

// give is called once for each bridge.
func (a *assent) give() {
	if a.left.Add(-1) == 0 {
		close(a.all)
	}
}

// wait returns when all have given theirs.
func (a *assent) wait(ctx context.Context) error {
	select {
	case <-a.all:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
