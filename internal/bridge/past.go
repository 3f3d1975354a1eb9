package bridge

import (
	"context"
	"errors"

	"backstory/capture"
	"backstory/transform"
)

// passing says which changes of a table are passed over, because a comparison of the
// table with the state finds what they did: those that commit below a position of the
// server.
type passing struct {
	// All of them: the keys of the rows are others by now.
	All capture.LSN `json:"all,omitempty"`
	// Doubted: those that say what nobody did, if the publication was another one for a
	// while. With a row filter, an update whose new row did not pass it came as a delete,
	// which is a false one where the identity is wider than the key; with other columns,
	// the rows had other columns than any look has found.
	Doubted capture.LSN `json:"doubted,omitempty"`
	// Unmapped: those that can't be mapped.
	Unmapped capture.LSN `json:"unmapped,omitempty"`
}

// above reports whether a position lies above the end of WAL: it is of another history.
func (p passing) above(end capture.LSN) bool { return max(p.All, p.Doubted, p.Unmapped) > end }

// below is what of it lies below a position. What this session has set, which is as far
// as it has seen, is of the server as it is.
func (p passing) below(at, seen capture.LSN) passing {
	for _, lsn := range []*capture.LSN{&p.All, &p.Doubted, &p.Unmapped} {
		if *lsn != seen {
			*lsn = min(*lsn, at)
		}
	}
	return p
}

// over reports whether a change is passed over: any, or one that could not be mapped
// for the given reason.
func (p passing) over(c *capture.Change, at capture.LSN, cause error) bool {
	var unmappable *transform.UnmappableError
	if errors.As(cause, &unmappable) {
		return at < p.Unmapped
	}
	if cause != nil {
		return false
	}
	doubted := c.Relation.Unseen || c.Op == capture.OpDelete && c.Relation.Wide()
	return at < p.All || doubted && at < p.Doubted
}

// past reads what the tables' runs pass over.
func (m memory) past(tables []*transform.Table) (map[uint16]passing, error) {
	past := map[uint16]passing{}
	for _, t := range tables {
		run, _, err := m.run(t.ID)
		if err != nil {
			return nil, err
		}
		if run.Passing != (passing{}) {
			past[t.ID] = run.Passing
		}
	}
	return past, nil
}

// passes is passing.over for the change's table. Nothing is noted of the change in the
// state. It committed below the position that Prepare had seen, so below the horizon of
// the run, and every chunk of that has it in its rows.
func (s *stream) passes(c *capture.Change, cause error) bool {
	if len(s.past) == 0 {
		return false
	}
	t := s.tr.Table(c.Relation)
	if t == nil {
		return false
	}
	at := c.Pos.LSN - s.base
	if !s.past[t.ID].over(c, at, cause) {
		return false
	}
	if s.tallies[t.ID].passed.Add(1) == 1 {
		s.b.log.Warn("changes are passed over: the comparison of the table with the state finds what they did",
			"table", t.String(), "lsn", at, "cause", cause)
	}
	return true
}

// takeShapes has the shapes of tables committed with the piece of the rows that follow.
func (s *stream) takeShapes(ctx context.Context, shapes []capture.Shape) error {
	for i := range shapes {
		for _, t := range s.b.mapping.Tables {
			if t.Schema != shapes[i].Schema || t.Name != shapes[i].Name {
				continue
			}
			p, err := s.open(ctx)
			if err != nil {
				return err
			}
			if err := s.b.memory.setShape(p.batch, t.ID, &shapes[i]); err != nil {
				return err
			}
			s.reshapedAt(t, &shapes[i])
		}
	}
	return nil
}
