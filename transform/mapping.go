package transform

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"maps"
	"slices"
	"time"

	"backstory/capture"
)

// Mapping says which tables become which aggregates. It is decoded strictly from
// a file of its own.
type Mapping struct {
	TypePrefix string
	Tables     []*Table

	whole  *Mapping         // of which this is one slot's part; nil: it is the whole
	file   string           // as ParseMapping was told, and where things stand in it
	places map[string]place // by path, for the messages of Bind
	paths  map[*Table]string
	// derived are the tables whose key the file does not name: it is the primary key of
	// the newest Bind.
	derived map[*Table]bool
}

// Table is one mapped table. The address identifies it in the running bridge,
// ID in the state.
type Table struct {
	// ID numbers the tables in the state; assigned by the bridge from the
	// state's registry of aggregates before the first use. From 1.
	ID         uint16
	Schema     string
	Name       string
	Aggregate  string   // AggregateType
	Slot       int      // number of the replication slot that streams the table, from 1
	Key        []string // columns; empty until Bind: the primary key
	Topics     Topics
	Fields     map[string]string // column → field
	Omit       []string          // columns
	Rules      []Rule
	Reason     string // column that holds the reason; empty: the context message
	TypePrefix string // of ce_type
	// Replace has U+FFFD stand for what is no character in texts of the database, see
	// capture.TableRef; else it is refused.
	Replace bool
	// Int64Text makes bigint values JSON strings, for consumers that read every
	// JSON number into a double.
	Int64Text bool

	// Former are the sources beside the present one whose records stand in the
	// topics rightly; assigned by the bridge from what the state remembers, and kept
	// up by it.
	Former []Former
	// Adopts has records of any source be taken in. Set by the bridge while it takes
	// over the topics of another source, because somebody asked for that.
	Adopts bool
}

// MaxSlots bounds the numbers of slots.
const MaxSlots = 64

// Topics are the two topics of a table and how they are made.
type Topics struct {
	Events      string
	Latest      string
	Partitions  int32
	Replication int16
	// Retention is how long the events topic keeps an event; 0: for ever. The
	// latest topic keeps the newest state for ever.
	Retention time.Duration
}

// Rule names an event after the fields that changed.
type Rule struct {
	Type string   // without prefix and suffix
	When []string // fields
}

// MaxRules bounds the rules of a table, so that the index of an event in its
// change, "…Updated" included, has three digits.
const MaxRules = 900

// String returns "schema.name", for messages.
func (t *Table) String() string { return t.Schema + "." + t.Name }

// EventType returns the ce_type of an event name: "PriceChanged" becomes
// "PriceChanged.v1" with the prefix of the mapping before it.
func (t *Table) EventType(name string) string { return t.TypePrefix + name + ".v1" }

// StateType returns the ce_type of the records of the latest topic.
func (t *Table) StateType() string { return t.EventType(t.Aggregate + "State") }

// standard returns the names that a table's events have without any rule, and
// that of its state: a rule must not use them.
func standard(aggregate string) []string {
	return []string{
		aggregate + "Created", aggregate + "Updated", aggregate + "Deleted",
		aggregate + "Imported", aggregate + "State",
	}
}

// field returns the name under which a column's value is published.
func (t *Table) field(column string) string {
	if f, ok := t.Fields[column]; ok {
		return f
	}
	return column
}

// group returns the index of the rule that names the field, or that of the
// "…Updated" event, which stands behind the rules.
func (t *Table) group(field string) int {
	for i, r := range t.Rules {
		if slices.Contains(r.When, field) {
			return i
		}
	}
	return len(t.Rules)
}

// Slots returns the numbers of the slots that the tables are divided over, in
// order.
func (m *Mapping) Slots() []int {
	var slots []int
	for _, t := range m.Tables {
		slots = append(slots, t.Slot)
	}
	slices.Sort(slots)
	return slices.Compact(slots)
}

// OfSlot returns the part of the mapping that one slot streams. It shares the
// tables with the whole, in which each stands in one part only.
func (m *Mapping) OfSlot(slot int) *Mapping {
	part := *m
	part.whole = m
	part.Tables = slices.DeleteFunc(slices.Clone(m.Tables), func(t *Table) bool { return t.Slot != slot })
	return &part
}

// Elsewhere returns the tables that other slots stream; none of a whole mapping.
func (m *Mapping) Elsewhere() []*Table {
	if m.whole == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(m.whole.Tables), func(t *Table) bool { return slices.Contains(m.Tables, t) })
}

// Refs returns what capture has to look for, in the order of the tables.
func (m *Mapping) Refs() []capture.TableRef {
	refs := make([]capture.TableRef, len(m.Tables))
	for i, t := range m.Tables {
		refs[i] = capture.TableRef{
			Schema: t.Schema, Name: t.Name,
			Key: slices.Clone(t.Key), Omit: slices.Clone(t.Omit), Replace: t.Replace,
		}
	}
	return refs
}

// encodingVersion is part of the fingerprint: it counts the ways in which this
// package has turned the same change into bytes.
const encodingVersion = 2

// Fingerprint is a hash of everything in the mapping of the table that makes the
// bytes of its events; the topics are not in it. It is to be asked for after
// Bind, when the key is known.
func (t *Table) Fingerprint() [32]byte { return t.FingerprintAs(t.Schema, t.Name, t.Key) }

// FingerprintAs is the fingerprint that the mapping would have if the table and the
// columns of its key had these names: none of them is in the bytes of an event.
func (t *Table) FingerprintAs(schema, name string, key []string) [32]byte {
	h := sha256.New()
	hashInt(h, encodingVersion)
	hashText(h, schema, name, t.Aggregate, t.TypePrefix, t.Reason)
	hashText(h, key...)
	hashText(h, slices.Sorted(slices.Values(t.Omit))...)
	for _, column := range slices.Sorted(maps.Keys(t.Fields)) {
		if field := t.Fields[column]; field != column {
			hashText(h, column, field)
		}
	}
	hashInt(h, len(t.Rules))
	for _, r := range t.Rules {
		hashText(h, r.Type)
		hashText(h, slices.Sorted(slices.Values(r.When))...)
	}
	if t.Int64Text {
		hashText(h, "int64: string")
	}
	if t.Replace {
		hashText(h, "undecodable: replace")
	}
	return [32]byte(h.Sum(nil))
}

// hashText writes the texts with their number and lengths, so that no two lists
// give the same bytes.
func hashText(h hash.Hash, texts ...string) {
	hashInt(h, len(texts))
	for _, s := range texts {
		hashInt(h, len(s))
		h.Write([]byte(s))
	}
}

func hashInt(h hash.Hash, n int) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	h.Write(b[:])
}

// find returns the table of a schema and name, or nil.
func (m *Mapping) find(schema, name string) *Table {
	i := slices.IndexFunc(m.Tables, func(t *Table) bool {
		return cmp.Or(cmp.Compare(t.Schema, schema), cmp.Compare(t.Name, name)) == 0
	})
	if i < 0 {
		return nil
	}
	return m.Tables[i]
}
