package audit

import (
	"context"
	"fmt"
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
}

// History has the steps of each key in commit order.
type History map[string][]Step

type note struct {
	tx       int64
	op       string
	old, new Row
	reason   *string
}

// ReadHistory reads the audit. messages says whether the server passes context
// messages on (Postgres 14 and later).
func ReadHistory(ctx context.Context, conn *pgx.Conn, messages bool) (History, int, error) {
	rows, err := conn.Query(ctx, `SELECT txid, op, old, new, reason FROM audit ORDER BY seq`)
	if err != nil {
		return nil, 0, fmt.Errorf("read the audit: %w", err)
	}
	defer rows.Close()
	var notes []note
	for rows.Next() {
		var n note
		if err := rows.Scan(&n.tx, &n.op, (*[]*string)(&n.old), (*[]*string)(&n.new), &n.reason); err != nil {
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
		if n.op != "M" {
			h.add(n)
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
		if notes[i].op != "0" {
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
		h.step(*n.new[0], Step{New: n.new, Standing: true})
	case n.op == "I":
		h.step(*n.new[0], Step{New: n.new, Reason: n.reason})
	case n.op == "D":
		h.step(*n.old[0], Step{Old: n.old, Reason: n.reason})
	case n.op == "R": // what a repair finds
		row := n.new
		if row == nil {
			row = n.old
		}
		h.step(*row[0], Step{Old: n.old, New: n.new, Cause: "reconciliation"})
	case n.op == "T":
		h.step(*n.old[0], Step{Old: n.old, Reason: n.reason, Cause: "truncate"})
	case *n.old[0] != *n.new[0]:
		h.step(*n.old[0], Step{Old: n.old, Reason: n.reason, Cause: "key-changed", Related: *n.new[0]})
		h.step(*n.new[0], Step{New: n.new, Reason: n.reason, Cause: "key-changed", Related: *n.old[0]})
	default:
		h.step(*n.new[0], Step{Old: n.old, New: n.new, Reason: n.reason})
	}
}

func (h History) step(key string, s Step) { h[key] = append(h[key], s) }

// want is an event that must be there.
type want struct {
	kind     string // type without prefix and suffix
	old, new map[string]string
	reason   *string
	cause    string
	related  string
	found    bool // by a repair: Imported if it is the first event of its key
	entry    bool // of a row that was not seen to begin: reason and cause are anything
}

// events lists what a step must yield for an aggregate that is known.
func (s Step) events() []want {
	base := want{old: map[string]string{}, new: map[string]string{}, reason: s.Reason, cause: s.Cause, related: s.Related}
	switch {
	case s.Old == nil:
		base.kind, base.new = "ProductCreated", fields(s.New, nil)
		base.found = s.Cause == "reconciliation"
		return []want{base}
	case s.New == nil:
		base.kind, base.old = "ProductDeleted", fields(s.Old, nil)
		return []want{base}
	}
	changed := s.Old.changed(s.New)
	var wants []want
	for _, r := range append(slices.Clone(rules), rule{event: "ProductUpdated"}) {
		var is []int
		for _, i := range changed {
			if r.takes(columns[i].name) {
				is = append(is, i)
			}
		}
		if len(is) == 0 {
			continue
		}
		w := base
		w.kind, w.old, w.new = r.event, fields(s.Old, is), fields(s.New, is)
		wants = append(wants, w)
	}
	return wants
}

// takes reports whether the rule names a field; the last one takes what none names.
func (r rule) takes(field string) bool {
	if r.fields != nil {
		return slices.Contains(r.fields, field)
	}
	return !slices.ContainsFunc(rules, func(o rule) bool { return slices.Contains(o.fields, field) })
}

// fields are the canonical values of the columns is, nil for all.
func fields(row Row, is []int) map[string]string {
	m := map[string]string{}
	for i, c := range columns {
		if is == nil || slices.Contains(is, i) {
			m[c.name] = c.canonical(row[i])
		}
	}
	return m
}
