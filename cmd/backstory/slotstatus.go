package main

import (
	"slices"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"

	"backstory/internal/bridge"
	"backstory/transform"
)

// processStatus is what /status shows. Of several slots the first part is the sum:
// the phase furthest from streaming, the lowest confirmed position, all tables.
type processStatus struct {
	bridge.Status
	Slots []slotStatus `json:"slots,omitempty"` // only of several
}

// slotStatus is the part of one slot.
type slotStatus struct {
	Number     int              `json:"number"`
	Name       string           `json:"name"`
	Phase      string           `json:"phase"`
	Since      time.Time        `json:"since"`
	Error      string           `json:"error,omitempty"`
	Confirmed  string           `json:"confirmed_lsn,omitempty"`
	LastCommit *time.Time       `json:"last_commit,omitempty"`
	Slot       *bridge.SlotView `json:"slot,omitempty"`
}

// phaseOrder has the phases of a bridge, that furthest from streaming first.
var phaseOrder = []string{"failed", "stopped", "reconnecting", "starting", "waiting for the slot", "recovering", "streaming"}

func phaseRank(phase string) int {
	for i, p := range phaseOrder {
		if p == phase {
			return i
		}
	}
	return 0 // one that nobody knows is not streaming
}

// status collects what the bridges tell of themselves; with slots also what the
// server says of each slot, which may be a question to it.
func (p *process) status(slots bool) processStatus {
	var all []slotStatus
	tables := map[string]bridge.TableStatus{}
	var views []*bridge.SlotView
	if slots {
		views = p.slotViews()
	}
	for i, part := range p.parts {
		s := part.bridge.Status()
		if slots {
			s.Slot = views[i]
		}
		if !p.several() {
			return processStatus{Status: s}
		}
		for _, t := range s.Tables {
			t.Slot = part.name()
			tables[t.Table] = t
		}
		all = append(all, slotStatus{Number: part.number, Name: part.name(), Phase: s.Phase, Since: s.Since, Error: s.Error,
			Confirmed: s.Confirmed, LastCommit: s.LastCommit, Slot: s.Slot})
	}
	sum := sumOf(all)
	for _, t := range p.mapping.Tables {
		sum.Tables = append(sum.Tables, tables[t.String()])
	}
	return sum
}

// slotViews asks the server for all slots at the same time: one that does not
// answer costs a wait.
func (p *process) slotViews() []*bridge.SlotView {
	views := make([]*bridge.SlotView, len(p.parts))
	var asked sync.WaitGroup
	for i, part := range p.parts {
		asked.Go(func() {
			view := part.bridge.Slot()
			views[i] = &view
		})
	}
	asked.Wait()
	return views
}

// sumOf is the status of a process without its tables.
func sumOf(slots []slotStatus) processStatus {
	sum := processStatus{Slots: slots}
	sum.Confirmed = slots[0].Confirmed
	worst := &slots[0]
	for i := range slots {
		s := &slots[i]
		if s.worse(worst) {
			worst = s
		}
		sum.Confirmed = lower(sum.Confirmed, s.Confirmed)
		if s.LastCommit != nil && (sum.LastCommit == nil || s.LastCommit.After(*sum.LastCommit)) {
			sum.LastCommit = s.LastCommit
		}
	}
	sum.Phase, sum.Since, sum.Error = worst.Phase, worst.Since, worst.named()
	return sum
}

// worse reports whether a slot is further from streaming than another: by its phase,
// then by what it waits for in that phase, then by how short it is in it.
func (s *slotStatus) worse(than *slotStatus) bool {
	if a, b := phaseRank(s.Phase), phaseRank(than.Phase); a != b {
		return a < b
	}
	if waits := s.Error != ""; waits != (than.Error != "") {
		return waits
	}
	return s.Since.After(than.Since)
}

// of is the status of those slots alone that have one of the tables.
func (s processStatus) of(tables []*transform.Table) bridge.Status {
	var with []slotStatus
	for _, slot := range s.Slots {
		if slices.ContainsFunc(s.Tables, func(b bridge.TableStatus) bool {
			return b.Slot == slot.Name && slices.ContainsFunc(tables, func(t *transform.Table) bool { return t.String() == b.Table })
		}) {
			with = append(with, slot)
		}
	}
	if len(with) == 0 {
		return s.Status // of one slot, or of another mapping
	}
	sum := sumOf(with).Status
	sum.Tables = s.Tables
	return sum
}

// named is the slot's error with its name.
func (s *slotStatus) named() string {
	if s.Error == "" {
		return ""
	}
	return "slot " + s.Name + ": " + s.Error
}

// lower is the lower of two positions; one that is not known yet is the lowest.
func lower(a, b string) string {
	x, err := pglogrepl.ParseLSN(a)
	if err != nil {
		return ""
	}
	y, err := pglogrepl.ParseLSN(b)
	if err != nil {
		return ""
	}
	return min(x, y).String()
}
