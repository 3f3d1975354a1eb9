package bridge_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"backstory/capture"
	"backstory/internal/bridge"
	"backstory/internal/e2e/audit"
	"backstory/internal/state"
	"backstory/transform"
)

// untouched is a database in which nothing may be made.
type untouched struct {
	*fakeDB
	t *testing.T
}

func (u untouched) Prepare(context.Context, bool) (*capture.Prepared, error) {
	u.t.Error("the database was prepared")
	return nil, errors.New("not to be reached")
}

// A state that has a table refuses a mapping which gives it to another slot, before
// a publication is touched.
func TestTableOfAnotherSlot(t *testing.T) {
	t.Parallel()
	w := &world{db: newFakeDB(1), kafka: newKafka(1), dirs: [2]string{t.TempDir(), t.TempDir()}}
	w.drain(t)
	m, err := transform.ParseMapping("test.yaml", []byte(strings.NewReplacer("%d", "1", "aggregate: Product", "aggregate: Product\n    slot: 2").
		Replace(audit.Mapping)+"  - {table: orders, aggregate: Order}\n"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	store, err := state.Open(t.Context(), state.Config{Dir: w.dirs[0]}, log, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	b := bridge.New(bridge.DefaultConfig(), bridge.DefaultBackfillConfig(), untouched{w.db, t}, &fakeSink{k: w.kafka}, store, m.OfSlot(1), log, prometheus.NewRegistry())
	err = b.Run(t.Context())
	var refusal *bridge.Refusal
	if !errors.As(err, &refusal) || !strings.Contains(err.Error(), "gives it to slot 2") {
		t.Errorf("got %v, want a Refusal that names slot 2", err)
	}
}
