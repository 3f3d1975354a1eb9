package transform

import (
	"fmt"
	"strings"
)

// Mistake is one thing that is wrong with a mapping.
type Mistake struct {
	File         string // as the user named it; empty for a mapping made by hand
	Line, Column int    // from 1; 0 if not known
	Path         string // "tables[0].events[1].when"
	Problem      string // what is wrong and what to write instead
}

// String returns "products.yaml:7:5: tables[0].key: …".
func (m Mistake) String() string {
	var b strings.Builder
	if m.File != "" {
		b.WriteString(m.File)
		if m.Line > 0 {
			fmt.Fprintf(&b, ":%d", m.Line)
		}
		if m.Column > 0 {
			fmt.Fprintf(&b, ":%d", m.Column)
		}
		b.WriteString(": ")
	}
	if m.Path != "" {
		b.WriteString(m.Path)
		b.WriteString(": ")
	}
	b.WriteString(m.Problem)
	return b.String()
}

// MappingError says all that is wrong with a mapping, one line for each mistake.
type MappingError struct {
	Mistakes []Mistake
}

// Error lists the mistakes, a line each.
func (e *MappingError) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = m.String()
	}
	return strings.Join(lines, "\n")
}

// Usage reports that the configuration is wrong, which nothing but a change of
// it can mend.
func (e *MappingError) Usage() bool { return true }

// FoldError says that the records of a topic do not follow one another: an event
// that is missing, or one that another writer put there.
type FoldError struct {
	Key     string
	Have    uint64 // version that the state has
	Got     uint64 // version of the record
	Problem string
}

// Error names the key and both versions.
func (e *FoldError) Error() string {
	return fmt.Sprintf("aggregate %q at version %d: record of version %d: %s", e.Key, e.Have, e.Got, e.Problem)
}

// Refused reports that going on would build on a broken history.
func (e *FoldError) Refused() bool { return true }

// UnmappableError says that WAL does not have what a change's events need: for
// instance the old key, under a replica identity that lacked it. Only a comparison of
// the table with what is known of it can tell what the change did.
type UnmappableError struct {
	Problem string
}

// Error reads "problem; cure: …".
func (e *UnmappableError) Error() string {
	return e.Problem + "; cure: run `backstory backfill --reconcile`, which passes over such changes and compares the table with the state"
}

// Refused tells callers in other packages what kind of error it is.
func (e *UnmappableError) Refused() bool { return true }

// valueError says that a value can't be told as it is. An operator decides what
// becomes of it.
type valueError string

// Error says what is wrong with the value, and what mends it.
func (e valueError) Error() string { return string(e) }

// Refused reports that starting again gets no further.
func (e valueError) Refused() bool { return true }
