package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"backstory/internal/bridge"
	"backstory/internal/state"
)

// threeTables are on two slots, the second of which is not 2.
const threeTables = `
tables:
  - {table: products, aggregate: Product}
  - {table: orders, aggregate: Order, slot: 7}
  - {table: shop.lines, aggregate: Line}
`

// processOf divides a mapping with the default configuration.
func processOf(t *testing.T, mapping string, change func(*Config)) (*process, error) {
	t.Helper()
	cfg := defaultConfig()
	cfg.Source.DSN = "postgres://u@localhost/db"
	cfg.Kafka.Brokers = []string{"localhost:9092"}
	cfg.State.Dir = t.TempDir()
	cfg.Mapping = filepath.Join(t.TempDir(), "mapping.yaml")
	if err := os.WriteFile(cfg.Mapping, []byte(mapping), 0o600); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(cfg)
	}
	return newProcess(cfg, slog.New(slog.DiscardHandler))
}

// Slot 1 has the names of the configuration; another one has its own for all that
// two bridges must not share.
func TestEachSlotHasNamesOfItsOwn(t *testing.T) {
	t.Parallel()
	p, err := processOf(t, threeTables, func(c *Config) {
		c.Kafka.TransactionalID, c.Kafka.DeadLetterTopic = "tx", "dead"
	})
	if err != nil {
		t.Fatal(err)
	}
	names := func(p *part) []string {
		c := p.cfg
		of := []string{c.Source.Slot, c.Source.Publication, c.State.Dir, c.Kafka.TransactionalID, c.Kafka.DeadLetterTopic}
		for _, t := range p.mapping.Tables {
			of = append(of, t.String())
		}
		return of
	}
	dir := p.cfg.State.Dir
	want := [][]string{
		{"backstory", "backstory", dir, "tx", "dead", "public.products", "shop.lines"},
		{"backstory_7", "backstory_7", filepath.Join(dir, "slot_7"), "tx_7", "dead_7", "public.orders"},
	}
	var got [][]string
	for _, part := range p.parts {
		got = append(got, names(part))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("names of the slots (-want +got):\n%s", d)
	}
}

func TestNamesThatDoNotFitAreRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"slot too long", func(c *Config) { c.Source.Slot = strings.Repeat("s", 62) }, "source.slot"},
		{"dead letters among events", func(c *Config) { c.Kafka.DeadLetterTopic = "order.events" }, "dead_letter_topic"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := processOf(t, threeTables, tt.change)
			if err == nil || !strings.Contains(err.Error(), tt.want) || exitCode(err) != exitUsage {
				t.Errorf("got %v, want wrong usage of %s", err, tt.want)
			}
		})
	}
}

// A request reaches the bridges that have its tables, with the names of those only.
func TestRequestsAreDividedBySlot(t *testing.T) {
	t.Parallel()
	p, err := processOf(t, threeTables, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		request bridge.BackfillRequest
		want    map[int][]string // tables by slot
		problem string
	}{
		{name: "all", want: map[int][]string{1: {"public.products", "shop.lines"}, 7: {"public.orders"}}},
		{name: "one", request: bridge.BackfillRequest{Tables: []string{"orders"}, Where: "true"}, want: map[int][]string{7: {"public.orders"}}},
		{name: "unknown", request: bridge.BackfillRequest{Tables: []string{"order"}}, problem: "is not in the mapping, which has public.products, public.orders, shop.lines"},
		{name: "condition on all", request: bridge.BackfillRequest{Where: "true"}, problem: "a condition is for one table"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			requests, err := p.requests(tt.request)
			if tt.problem != "" {
				var wrong *bridge.RequestError
				if !errors.As(err, &wrong) || !strings.Contains(err.Error(), tt.problem) {
					t.Fatalf("got %v, want %q", err, tt.problem)
				}
				return
			}
			got := map[int][]string{}
			for part, r := range requests {
				got[part.number] = r.Tables
				if r.Where != tt.request.Where {
					t.Errorf("slot %d: condition %q, want %q", part.number, r.Where, tt.request.Where)
				}
			}
			if d := cmp.Diff(tt.want, got); err != nil || d != "" {
				t.Errorf("%v (-want +got):\n%s", err, d)
			}
		})
	}
}

// Nobody goes on before all have given their assent.
func TestAssentIsThatOfAll(t *testing.T) {
	t.Parallel()
	a := newAssent(2)
	a.give()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v before the last assent, want to wait until the context ends", err)
	}
	a.give()
	if err := a.wait(t.Context()); err != nil {
		t.Error(err)
	}
}

// The sum of slots streams only if all do, and is confirmed where the last one is.
func TestStatusOfSeveralSlots(t *testing.T) {
	t.Parallel()
	early, late := time.Unix(10, 0), time.Unix(20, 0)
	streams := slotStatus{Name: "a", Phase: "streaming", Since: early, Confirmed: "1/10", LastCommit: &late}
	for _, tt := range []struct {
		name            string
		other           slotStatus
		phase, err, lsn string
		since           time.Time
	}{
		{"both stream", slotStatus{Name: "b", Phase: "streaming", Since: late, Confirmed: "0/FFFFFFFF", LastCommit: &early}, "streaming", "", "0/FFFFFFFF", late},
		{"one recovers", slotStatus{Name: "b", Phase: "recovering", Since: early, Confirmed: "2/0"}, "recovering", "", "1/10", early},
		{"one waits for Kafka", slotStatus{Name: "b", Phase: "streaming", Since: early.Add(-time.Second), Error: "no answer", Confirmed: "1/20"},
			"streaming", "slot b: no answer", "1/10", early.Add(-time.Second)},
		{"one fails", slotStatus{Name: "b", Phase: "failed", Since: late, Error: "broken"}, "failed", "slot b: broken", "", late},
		{"a phase that is not known", slotStatus{Name: "b", Phase: "new", Since: early, Confirmed: "1/20"}, "new", "", "1/10", early},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, slots := range [][]slotStatus{{streams, tt.other}, {tt.other, streams}} {
				got := sumOf(slots)
				if got.Phase != tt.phase || got.Error != tt.err || got.Confirmed != tt.lsn || !got.Since.Equal(tt.since) || !got.LastCommit.Equal(late) {
					t.Errorf("got %s since %s (%s), confirmed %q, last commit %s; want %s since %s (%s), %q, %s", got.Phase, got.Since, got.Error,
						got.Confirmed, got.LastCommit, tt.phase, tt.since, tt.err, tt.lsn, late)
				}
				if err := ready(got.Status); (err == nil) != (tt.phase == "streaming" && tt.err == "") {
					t.Errorf("ready says %v", err)
				}
			}
		})
	}
}

// A state that remembers something is not left without tables; an empty one is what
// a start leaves that was refused.
func TestStateWithoutTables(t *testing.T) {
	t.Parallel()
	p, err := processOf(t, threeTables, nil)
	if err != nil {
		t.Fatal(err)
	}
	left := p.cfg.forSlot(3).State
	if err := p.noStateLeft(); err != nil {
		t.Fatalf("no state: %v", err)
	}
	for _, used := range []bool{false, true} {
		store, err := state.Open(t.Context(), left, slog.New(slog.DiscardHandler), nil)
		if err == nil && used {
			batch := store.Begin()
			batch.SetMeta("lsn", []byte{1})
			err = store.Commit(batch)
		}
		if err != nil {
			t.Fatal(err)
		}
		var refusal *bridge.Refusal
		if err := p.noStateLeft(); !errors.As(err, &refusal) {
			t.Errorf("a state that a process has: got %v", err)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		refusal = nil
		if err := p.noStateLeft(); errors.As(err, &refusal) != used {
			t.Errorf("state that is used %t: got %v", used, err)
		}
	}
}
