package bridge

import (
	"encoding/json"
	"fmt"
	"time"

	"backstory/capture"
	"backstory/internal/state"
)

// importRun is one reading of a table, and how far it has come. It is committed
// with the rows that it tells of.
type importRun struct {
	Done      bool        `json:"done"`
	Reconcile bool        `json:"reconcile"`        // the state may hold what the table lost
	Asked     bool        `json:"asked,omitempty"`  // somebody asked for it; it needs no backfill.initial
	Paused    bool        `json:"paused,omitempty"` // until it is resumed
	Scanned   bool        `json:"scanned"`          // all chunks are read
	Horizon   capture.LSN `json:"horizon"`          // transactions that committed below are visible to every chunk
	Cursor    []string    `json:"cursor,omitempty"` // key of the last row applied
	Where     string      `json:"where,omitempty"`  // condition of the rows to read; empty: all
	Rows      int64       `json:"rows"`             // rows applied so far
	Events    int64       `json:"events"`           // that they made
	Equal     int64       `json:"equal"`            // rows that made none
	Gone      int64       `json:"gone"`             // aggregates whose row was not there
	Began     int64       `json:"began,omitempty"`  // seconds since 1970
	Failed    string      `json:"failed,omitempty"` // why a run that was asked for has ended before its end
	// What of the table's changes is passed over, since the run finds what they did:
	// see passing. It stays when the run is done: the changes may come again.
	Passing passing `json:"passing,omitzero"`
	Schema  bool    `json:"schema,omitempty"` // the table's columns have changed; its events say so
	// Pace of the run; 0: as configured.
	ChunkRows     int `json:"chunk_rows,omitempty"`
	RowsPerSecond int `json:"rows_per_second,omitempty"`
}

// sweeps reports whether aggregates that no chunk has brought are looked up: a
// part of a table tells nothing of the rest.
func (r importRun) sweeps() bool { return r.Reconcile && r.Where == "" }

func importName(table uint16) string { return fmt.Sprintf("import/%d", table) }

// run returns how far the table's import is; ok is false if it never began.
func (m memory) run(table uint16) (r importRun, ok bool, err error) {
	v, ok := m.store.Meta(importName(table))
	if !ok {
		return importRun{}, false, nil
	}
	if err := json.Unmarshal(v, &r); err != nil {
		return importRun{}, false, damaged(importName(table))
	}
	return r, true, nil
}

func setRun(b *state.Batch, table uint16, r importRun) error {
	v, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("import progress of table %d: %w", table, err)
	}
	b.SetMeta(importName(table), v)
	return nil
}

// owed is a run that compares the table with the state, and passes over what the one
// before did.
func (m memory) owed(table uint16) (importRun, error) {
	before, _, err := m.run(table)
	return importRun{Reconcile: true, Passing: before.Passing}, err
}

// pace measures rows a second over the last seconds.
type pace struct {
	at   time.Time
	rows int64
	rate float64
}

// paceWindow is how far back the rate looks.
const paceWindow = 5 * time.Second

// observe takes in that rows have been applied by now, and returns the rate.
func (p *pace) observe(now time.Time, rows int64) float64 {
	if p.at.IsZero() || rows < p.rows {
		*p = pace{at: now, rows: rows}
		return 0
	}
	elapsed := now.Sub(p.at)
	if elapsed < paceWindow/10 {
		return p.rate
	}
	rate := float64(rows-p.rows) / elapsed.Seconds()
	weight := min(1, elapsed.Seconds()/paceWindow.Seconds())
	if p.rate == 0 {
		weight = 1
	}
	p.rate += weight * (rate - p.rate)
	p.at, p.rows = now, rows
	return p.rate
}
