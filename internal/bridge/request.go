package bridge

import (
	"context"
	"fmt"
	"strings"
	"time"

	"backstory/transform"
)

// BackfillRequest asks for tables to be read and for the differences from the
// state to be published.
type BackfillRequest struct {
	// Tables are named as in the mapping, with or without their schema; none
	// means all.
	Tables []string `json:"tables,omitempty"`
	// Where is an SQL condition on the rows, for one table. Rows that are gone are
	// then not looked for.
	Where string `json:"where,omitempty"`
	// DryRun counts the differences and publishes nothing.
	DryRun bool `json:"dry_run,omitempty"`
	// ChunkRows, RowsPerSecond and Parallel are as in the configuration; 0: what is
	// configured.
	ChunkRows     int `json:"chunk_rows,omitempty"`
	RowsPerSecond int `json:"rows_per_second,omitempty"`
	Parallel      int `json:"parallel,omitempty"`
}

// RequestError says why a request can't be carried out.
type RequestError struct {
	Problem  string
	Conflict bool // with what is going on; else the request itself is wrong
}

func (e *RequestError) Error() string { return e.Problem }

// Usage marks a request that is wrong in itself.
func (e *RequestError) Usage() bool { return !e.Conflict }

// Refused marks a request that is not possible now.
func (e *RequestError) Refused() bool { return e.Conflict }

// ErrNotStreaming says that the bridge can't take requests, because it does not
// stream now.
type ErrNotStreaming struct{ Phase, Cause string }

func (e *ErrNotStreaming) Error() string {
	if e.Cause == "" {
		return "the bridge does not stream: it is " + e.Phase
	}
	return fmt.Sprintf("the bridge does not stream: it is %s: %s", e.Phase, e.Cause)
}

// request is what the scheduler of the running session is to do.
type request struct {
	do    func(ctx context.Context, s *scheduler) error
	reply chan error
}

// requestTimeout is how long a request waits for a session that streams.
const requestTimeout = 10 * time.Second

// Backfill begins to read the tables beside the stream, and returns when that is
// durable: a restart goes on with it. It may be called while Run runs. A wrong
// request, and a table that is being read already, is a *RequestError; a bridge that
// does not stream an *ErrNotStreaming.
func (b *Bridge) Backfill(ctx context.Context, r BackfillRequest) error {
	tables, err := b.tables(r.Tables)
	if err != nil {
		return err
	}
	switch {
	case r.Where != "" && len(tables) != 1:
		return &RequestError{Problem: "a condition is for one table: name it"}
	case r.ChunkRows < 0 || r.ChunkRows > maxChunkRows:
		return &RequestError{Problem: fmt.Sprintf("chunk_rows: from 1 to %d", maxChunkRows)}
	case r.RowsPerSecond < 0:
		return &RequestError{Problem: "rows_per_second: 0 (no limit) or above"}
	case r.Parallel < 0 || r.Parallel > maxParallel:
		return &RequestError{Problem: fmt.Sprintf("parallel: from 1 to %d", maxParallel)}
	}
	return b.ask(ctx, func(ctx context.Context, s *scheduler) error { return s.accept(ctx, tables, r) })
}

// PauseBackfill stops reading the tables after the chunk that is under way, or
// goes on with it. It holds over restarts.
func (b *Bridge) PauseBackfill(ctx context.Context, names []string, paused bool) error {
	tables, err := b.tables(names)
	if err != nil {
		return err
	}
	return b.ask(ctx, func(_ context.Context, s *scheduler) error { return s.pause(tables, len(names) > 0, paused) })
}

// ask hands a request to the session that streams.
func (b *Bridge) ask(ctx context.Context, do func(context.Context, *scheduler) error) error {
	r := request{do: do, reply: make(chan error, 1)}
	wait, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	select {
	case b.requests <- r:
	case <-wait.Done():
		s := b.Status()
		return &ErrNotStreaming{Phase: s.Phase, Cause: s.Error}
	}
	select {
	case err := <-r.reply:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for the backfill to begin: %w", context.Cause(ctx))
	}
}

// tables finds the tables of the mapping by name.
func (b *Bridge) tables(names []string) ([]*transform.Table, error) {
	if len(names) == 0 {
		return b.mapping.Tables, nil
	}
	var found []*transform.Table
	for _, name := range names {
		t, err := TableNamed(b.mapping, name)
		if err != nil {
			return nil, err
		}
		found = append(found, t)
	}
	return found, nil
}

// TableNamed finds the table of a mapping that a request means, with or without
// its schema; without one it is a *RequestError.
func TableNamed(m *transform.Mapping, name string) (*transform.Table, error) {
	var found []*transform.Table
	var known []string
	for _, t := range m.Tables {
		full := t.Schema + "." + t.Name
		if name == full || name == t.Name || name == t.String() {
			found = append(found, t)
		}
		known = append(known, full)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, &RequestError{Problem: fmt.Sprintf("table %s is not in the mapping, which has %s", name, strings.Join(known, ", "))}
	}
	return nil, &RequestError{Problem: fmt.Sprintf("table %s is in the mapping more than once: name its schema too", name)}
}
