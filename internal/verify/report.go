package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"backstory/sink"
)

// Side is one of the four that are compared.
type Side string

// The sides. Events is the fold of the events topic.
const (
	Table  Side = "table"
	State  Side = "state"
	Latest Side = "latest"
	Events Side = "events"
)

// Value is what one side has.
type Value struct {
	Side Side `json:"side"`
	// Value is JSON; nil: the side has nothing there.
	Value json.RawMessage `json:"value"`
}

// Difference is one thing that is not as it must be.
type Difference struct {
	Table string `json:"table"`
	Key   string `json:"key,omitempty"` // empty: it is about a partition
	// Problem says what is wrong in a few words that are always the same.
	Problem Problem `json:"problem"`
	Field   string  `json:"field,omitempty"` // of the aggregate; or "version", "position", "xid", "id" of the record
	// Values are those of the two sides that differ; one of them alone where the
	// record contradicts itself or its predecessor.
	Values []Value `json:"values,omitempty"`
	Where  string  `json:"where,omitempty"` // topic, partition and offset of the record
	Detail string  `json:"detail,omitempty"`
}

// Problem classifies differences.
type Problem string

// The problems.
const (
	ValueDiffers   Problem = "value differs"    // a field
	Missing        Problem = "missing"          // one side does not have the aggregate
	Behind         Problem = "behind"           // one side has an older version than it must
	Unfounded      Problem = "unfounded"        // one side has a version that the events do not have
	HeadersDiffer  Problem = "headers differ"   // same version, other position, xid, id or time
	GapInVersions  Problem = "gap in versions"  // of the events
	VersionAgain   Problem = "version repeated" // of the events
	VersionBack    Problem = "version went back"
	OutOfOrder     Problem = "position out of order"
	WrongOld       Problem = "old value is not the one before"
	WrongID        Problem = "id is not that of the event"
	WrongPartition Problem = "wrong partition"
	NotOurs        Problem = "not written by the bridge"
	Unfoldable     Problem = "event can't be folded"
	WrongOffset    Problem = "ce_eventsoffset is wrong"
	EventsRemoved  Problem = "events removed" // the log's start, where no retention was asked for
	WrongTime      Problem = "wrong time"
	WrongSource    Problem = "of another source"
)

// Result is the outcome of a verification of one table.
type Result struct {
	Table     string    `json:"table"`
	Aggregate string    `json:"aggregate"`
	Equal     bool      `json:"equal"`
	Began     time.Time `json:"began"`
	Ended     time.Time `json:"ended"`

	Compared Compared `json:"compared"`

	// Differences are the first ones, Found counts them all.
	Found       int          `json:"found"`
	Differences []Difference `json:"differences"`
	// Former counts the rows that differ in nothing but columns which are younger than
	// the row's last change: nobody has touched them since the table's columns changed,
	// which is no difference.
	Former int64 `json:"rows_of_former_columns"`
	// Unsettled are the first keys that could not be compared, NotCompared counts
	// them all.
	NotCompared int      `json:"not_compared"`
	Unsettled   []string `json:"unsettled,omitempty"`
}

// Compared says what was looked at.
type Compared struct {
	Rows          int64 `json:"rows"`           // of the table
	Keys          int64 `json:"keys"`           // in any of the four, deleted ones included
	Events        int64 `json:"events"`         // records of the events topic
	LatestRecords int64 `json:"latest_records"` // records of the latest topic
	StateKeys     int64 `json:"state_keys"`     // aggregates of the state, deleted ones included
	LookedAgain   int64 `json:"looked_again"`   // looks at rows after the first one
	// CommitTimes counts the transactions of which the server was asked for the time.
	CommitTimes int64 `json:"commit_times,omitempty"`
	// EventsCut and EventsGone count aggregates of which retention has taken the first
	// events, and all of them. They are compared with what is left.
	EventsCut  int64 `json:"events_cut,omitempty"`
	EventsGone int64 `json:"events_gone,omitempty"`

	// FirstPosition and LastPosition are the WAL positions of the first and the
	// last look at the table: each row was compared at one between them.
	FirstPosition string      `json:"first_position"`
	LastPosition  string      `json:"last_position"`
	EventsRead    []sink.Span `json:"events_read"` // offsets of each partition
	LatestRead    []sink.Span `json:"latest_read"`
}

// Limit is how many differences and unsettled keys a result keeps by default.
const Limit = 1000

// String is the difference in one line.
func (d *Difference) String() string {
	var b strings.Builder
	b.WriteString(d.Table)
	if d.Key != "" || d.Where == "" {
		fmt.Fprintf(&b, " key %q", d.Key)
	}
	if d.Field != "" {
		fmt.Fprintf(&b, " %s", d.Field)
	}
	fmt.Fprintf(&b, ": %s", d.Problem)
	for i, v := range d.Values {
		b.WriteString([]string{": ", ", "}[min(i, 1)])
		fmt.Fprintf(&b, "%s has %s", v.Side, shown(v.Value))
	}
	if d.Detail != "" {
		b.WriteString("; " + d.Detail)
	}
	if d.Where != "" {
		b.WriteString(" (" + d.Where + ")")
	}
	return b.String()
}

// shownBytes is how much of a value a line has.
const shownBytes = 160

func shown(v json.RawMessage) string {
	switch {
	case v == nil:
		return "nothing"
	case len(v) > shownBytes:
		return printable(strings.ToValidUTF8(string(v[:shownBytes]), "")) + "…"
	}
	return printable(string(v))
}

// printable keeps data from steering a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, text)
}

// raw makes a value for a report of bytes that may be no JSON.
func raw(text []byte) json.RawMessage {
	if text == nil {
		return nil
	}
	if !json.Valid(text) {
		quoted, _ := json.Marshal(string(text)) // a string always has JSON
		return quoted
	}
	return bytes.Clone(text)
}

func number(n uint64) json.RawMessage { return strconv.AppendUint(nil, n, 10) }

func quoted(text string) json.RawMessage {
	out, _ := json.Marshal(text) // a string always has JSON
	return out
}

// add keeps a difference, or only counts it.
func (r *Result) add(limit int, d Difference) {
	r.Found++
	if len(r.Differences) < limit {
		d.Table = r.Table
		r.Differences = append(r.Differences, d)
	}
}
