package bridge

import (
	"context"
	"time"

	"backstory/capture"
	"backstory/transform"
)

// ColumnsChanged says that the columns of a table have changed. A row that nobody has
// changed since still has the former ones in the topics; reading the table ends that.
type ColumnsChanged struct {
	Columns []string  `json:"columns"`
	Since   time.Time `json:"since"` // when it was noticed
}

// reshaped tells how a table's columns have changed since it was last read as a whole;
// nil if they have not.
func (m memory) reshaped(table uint16) (*ColumnsChanged, error) {
	s, err := m.shape(table)
	if err != nil || s == nil || s.Changed == 0 {
		return nil, err
	}
	run, _, err := m.run(table)
	if err != nil {
		return nil, err
	}
	if run.Done && run.Where == "" && run.Failed == "" && run.Horizon >= s.At {
		return nil, nil
	}
	return &ColumnsChanged{Columns: s.Names, Since: time.Unix(s.Changed, 0).UTC()}, nil
}

// reshape begins a run of each table whose columns have changed since it was read, if
// that is wanted. One that is being read is looked at again when that is done. What is
// owed follows from what the state has, so a crash forgets nothing.
func (sch *scheduler) reshape(ctx context.Context) error {
	b := sch.s.b
	if b.backfill.OnSchemaChange != schemaCompare {
		return nil
	}
	for _, t := range b.mapping.Tables {
		if sch.runs[t] != nil {
			continue
		}
		changed, err := b.memory.reshaped(t.ID)
		if err != nil || changed == nil {
			if err != nil {
				return err
			}
			continue
		}
		run, err := b.memory.owed(t.ID)
		if err != nil {
			return err
		}
		run.Schema = true
		im, err := sch.s.importer(ctx, t, run, nil)
		if err != nil {
			return err
		}
		if err := im.tell(ctx); err != nil {
			return err
		}
		b.log.Info("columns have changed, the table is compared with the state", "table", t.String(), "columns", changed.Columns)
		sch.enqueue(im)
	}
	return nil
}

// relabel gives the events of a run over a table whose columns have changed their
// cause.
func relabel(events []transform.Event) {
	for i := range events {
		if events[i].Cause == transform.Reconciliation {
			events[i].Cause = transform.SchemaChange
		}
	}
}

// reshapedAt is a shape that the state has, for the log and the scheduler.
func (s *stream) reshapedAt(t *transform.Table, shape *capture.Shape) {
	s.b.log.Info("the table's columns have changed", "table", t.String(), "columns", shape.Names)
	select {
	case s.reshaped <- struct{}{}:
	default: // one look is enough for all
	}
}

// settled returns when everything that the first stage has taken is durable.
func (s *stream) settled(ctx context.Context) error {
	j := &job{table: s.b.mapping.Tables[0], chunk: &capture.Chunk{}, durable: true, applied: make(chan struct{})}
	if err := s.hand(ctx, j); err != nil {
		return err
	}
	return j.wait(ctx)
}
