package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
)

// A transaction up to this size also gives its first context message to the
// changes before it (the contract's bound on what is held).
const heldChanges = 1000

// Step is one change of one key as the audit has it.
type Step struct {
	Old, New Row // nil: not there
	Reason   *string
	Cause    string // "", "truncate", "key-changed" or "reconciliation"
	Related  string // the other id of a changed key
	Standing bool   // it stood before the audit began
	// More has the columns of the new row that were added to the table.
	More map[string]json.RawMessage
	// Schema says that not the row has changed but the columns of its table. That
	// makes no event by itself; a run that compares the table may tell of it.
	Schema bool
}

// History has the steps of each key in commit order.
type History map[string][]Step

type note struct {
	tx       int64
	op       string
	old, new Row
	more     map[string]json.RawMessage
	reason   *string
}

// image is the comparable text of each field.
type image map[string]string

// ReadHistory reads the audit. messages says whether the server passes context
// messages on (Postgres 14 and later).
func ReadHistory(ctx context.Context, conn *pgx.Conn, messages bool) (History, int, error) {
	rows, err := conn.Query(ctx, `SELECT txid, op, old, new, more, reason FROM audit ORDER BY seq`)
	if err != nil {
		return nil, 0, fmt.Errorf("read the audit: %w", err)
	}
	defer rows.Close()
	var notes []note
	for rows.Next() {
		var n note
		if err := rows.Scan(&n.tx, &n.op, (*[]*string)(&n.old), (*[]*string)(&n.new), &n.more, &n.reason); err != nil {
			return nil, 0, fmt.Errorf("read the audit: %w", err)
		}
		if !messages {
			n.reason = nil
		}
		notes = append(notes, n)
	}
	if err := rows.Err(); err != nil {
		return nil, 0, fmt.Errorf("read the audit: %w", err)
	}
	giveFirstReason(notes)
	h, changes := History{}, 0
	for _, n := range notes {
		if n.op == "M" {
			continue
		}
		h.add(n)
		if n.op != "S" {
			changes++
		}
	}
	return h, changes, nil
}

// giveFirstReason gives the first message of a small transaction to its changes
// before it.
func giveFirstReason(notes []note) {
	byTx := map[int64][]*note{}
	for i := range notes {
		if notes[i].op != "0" && notes[i].op != "S" {
			byTx[notes[i].tx] = append(byTx[notes[i].tx], &notes[i])
		}
	}
	for _, ns := range byTx {
		i := slices.IndexFunc(ns, func(n *note) bool { return n.op == "M" })
		if i <= 0 || len(ns) > heldChanges {
			continue
		}
		for _, n := range ns[:i] {
			n.reason = ns[i].reason
		}
	}
}

func (h History) add(n note) {
	switch {
	case n.op == "0":
		h.step(*n.new[0], Step{New: n.new, More: n.more, Standing: true})
	case n.op == "S":
		h.step(*n.new[0], Step{New: n.new, More: n.more, Schema: true})
	case n.op == "I":
		h.step(*n.new[0], Step{New: n.new, More: n.more, Reason: n.reason})
	case n.op == "D":
		h.step(*n.old[0], Step{Old: n.old, Reason: n.reason})
	case n.op == "R": // what a repair finds
		row := n.new
		if row == nil {
			row = n.old
		}
		h.step(*row[0], Step{Old: n.old, New: n.new, More: n.more, Cause: "reconciliation"})
	case n.op == "T":
		h.step(*n.old[0], Step{Old: n.old, Reason: n.reason, Cause: "truncate"})
	case *n.old[0] != *n.new[0]:
		h.step(*n.old[0], Step{Old: n.old, Reason: n.reason, Cause: "key-changed", Related: *n.new[0]})
		h.step(*n.new[0], Step{New: n.new, More: n.more, Reason: n.reason, Cause: "key-changed", Related: *n.old[0]})
	default:
		h.step(*n.new[0], Step{Old: n.old, New: n.new, More: n.more, Reason: n.reason})
	}
}

func (h History) step(key string, s Step) { h[key] = append(h[key], s) }

// want is an event that must be there.
type want struct {
	kind     string // type without prefix and suffix
	old, new image
	reason   *string
	cause    string
	related  string
	found    bool // by a repair: Imported if it is the first event of its key
	entry    bool // of a row that was not seen to begin: reason and cause are anything
}

// image is the comparable text of all columns of the new row.
func (s Step) image() image {
	im := s.New.image()
	for name, value := range s.More {
		im[name] = columnOf(name).canonicalJSON(value)
	}
	return im
}

// events lists what a step must yield for an aggregate whose events so far fold
// to known. That is not always the row's old version: of a column that was added
// or dropped the events tell with the row's next change.
func (s Step) events(known image) []want {
	base := want{old: image{}, new: image{}, reason: s.Reason, cause: s.Cause, related: s.Related}
	switch {
	case s.Schema:
		base.cause = "reconciliation"
	case s.Old == nil:
		base.kind, base.new = "ProductCreated", s.image()
		base.found = s.Cause == "reconciliation"
		return []want{base}
	case s.New == nil:
		base.kind, base.old = "ProductDeleted", maps.Clone(known)
		return []want{base}
	}
	changed := known.changed(s.image())
	var wants []want
	for _, r := range append(slices.Clone(rules), rule{event: "ProductUpdated"}) {
		w := base
		w.kind, w.old, w.new = r.event, image{}, image{}
		for name, value := range changed {
			if !r.takes(name) {
				continue
			}
			w.new[name] = value
			if old, ok := known[name]; ok {
				w.old[name] = old
			}
		}
		if len(w.new) > 0 {
			wants = append(wants, w)
		}
	}
	return wants
}

// changed has the fields in which a row differs from an image; one that the row
// has no more is null.
func (im image) changed(row image) image {
	out := image{}
	for name, value := range row {
		if old, ok := im[name]; !ok || old != value {
			out[name] = value
		}
	}
	for name, old := range im {
		if _, ok := row[name]; !ok && old != "null" {
			out[name] = "null"
		}
	}
	return out
}

// takes reports whether the rule names a field; the last one takes what none names.
func (r rule) takes(field string) bool {
	if r.fields != nil {
		return slices.Contains(r.fields, field)
	}
	return !slices.ContainsFunc(rules, func(o rule) bool { return slices.Contains(o.fields, field) })
}
