package capture

import (
	"fmt"
	"slices"
	"strings"
)

// texts turns the texts of the mapped tables into UTF-8. It belongs to one goroutine.
type texts struct {
	charset *charset
	tables  map[tableName]TableRef // with their keys
	plans   map[*Relation][]treatment
	scratch []byte
}

// treatment is what is done to the text of a column.
type treatment uint8

const (
	leftAlone    treatment = iota // it is not captured: its bytes may be anything
	refusedIfBad                  // what can't be converted stops the bridge
	replacedIfBad
	keyOrRefused // as refusedIfBad, and what the old row has of it is needed too
)

// newTexts returns nil where the database's texts are UTF-8.
func newTexts(c *charset, tables []TableRef, prepared []TableInfo) *texts {
	if c == nil {
		return nil
	}
	t := &texts{charset: c, tables: make(map[tableName]TableRef, len(tables)), plans: make(map[*Relation][]treatment)}
	for _, ref := range tables {
		t.tables[tableName{ref.Schema, ref.Name}] = ref
	}
	for i := range prepared {
		name := tableName{prepared[i].Schema, prepared[i].Name}
		if ref, ok := t.tables[name]; ok && len(ref.Key) == 0 {
			ref.Key = prepared[i].PrimaryKey
			t.tables[name] = ref
		}
	}
	return t
}

// plan says what is done to each column of a relation.
func (t *texts) plan(rel *Relation) []treatment {
	plan, ok := t.plans[rel]
	if !ok {
		plan = treatments(t.tables[tableName{rel.Schema, rel.Name}], rel)
		t.plans[rel] = plan
	}
	return plan
}

func treatments(ref TableRef, rel *Relation) []treatment {
	plan := make([]treatment, len(rel.Columns))
	for i := range rel.Columns {
		c := &rel.Columns[i]
		switch name := c.Name; {
		case slices.Contains(rel.KeyColumns, i), slices.Contains(ref.Key, name), len(ref.Key) == 0 && c.Key && rel.Identity != identityFull:
			plan[i] = keyOrRefused
		case slices.Contains(ref.Omit, name):
			plan[i] = leftAlone
		case ref.Replace:
			plan[i] = replacedIfBad
		default:
			plan[i] = refusedIfBad
		}
	}
	return plan
}

// change converts the values of a change; keep copies bytes to where they stay.
func (t *texts) change(c *Change, keep func([]byte) []byte) error {
	plan := t.plan(c.Relation)
	for i := range c.New {
		if err := t.value(&c.New[i], plan[i], keep); err != nil {
			return t.refuse(c, i, plan[i], c.New, err)
		}
	}
	for i := range c.Old {
		err := t.value(&c.Old[i], plan[i], keep)
		switch {
		case err == nil:
		case c.needsOld(i, plan[i]):
			return t.refuse(c, i, plan[i], c.Old, err)
		default:
			c.Old[i] = Value{} // nobody asks for it, or only to compare it
		}
	}
	return nil
}

// needsOld reports whether the old row's value of a column makes the event: that of
// a key, and what stands for a large value that the new row does not have.
func (c *Change) needsOld(i int, how treatment) bool {
	return how == keyOrRefused || c.OldFull && i < len(c.New) && c.New[i].Kind == Unchanged
}

func (t *texts) value(v *Value, how treatment, keep func([]byte) []byte) error {
	if v.Kind != Text || how == leftAlone || isASCII(v.Data) {
		return nil
	}
	var err error
	if t.scratch, err = t.charset.appendUTF8(t.scratch[:0], v.Data, how == replacedIfBad); err != nil {
		return err
	}
	v.Data = keep(t.scratch)
	return nil
}

// shownKey bounds what a message shows of a key, in bytes.
const shownKey = 200

// refuse says which text can't be taken, where it stands, and what can be done. The
// row is the one of the change that was being converted, up to the column.
func (t *texts) refuse(c *Change, column int, how treatment, row []Value, err error) error {
	rel := c.Relation
	where := "in the row that a chunk has read"
	if c.Op != OpRead {
		where = fmt.Sprintf("%s at %s, transaction %d", c.Op, c.Pos, c.XID)
	}
	return &Refusal{
		Thing:   fmt.Sprintf("table %s.%s, column %s", rel.Schema, rel.Name, rel.Columns[column].Name),
		Problem: fmt.Sprintf("%s%s: %v", where, t.keyText(rel, row, column), err),
		Cure:    cureOf(c.Op, how),
	}
}

// cureOf says what helps. WAL can't be mended.
func cureOf(op Op, how treatment) string {
	switch {
	case how == keyOrRefused && op == OpRead:
		return "mend the row; a part of the key is never replaced"
	case how == keyOrRefused:
		return "map another key; or mend the row, drop the slot, and let `backstory backfill --reconcile` go on from the table: a part of the key is never replaced"
	case op == OpRead:
		return "mend the row; or, in the mapping of the table, leave the column out with omit, or have such bytes replaced by U+FFFD with undecodable: replace"
	}
	return "in the mapping of the table, leave the column out with omit, or have such bytes replaced by U+FFFD with undecodable: replace " +
		"(the row may be mended, but WAL keeps what it was)"
}

// keyText names a row by its key, as far as that is in it. The first so many values
// of the row are converted.
func (t *texts) keyText(rel *Relation, row []Value, converted int) string {
	var text strings.Builder
	for i, how := range t.plan(rel) {
		if how != keyOrRefused || i >= len(row) || row[i].Kind != Text {
			continue
		}
		value := string(row[i].Data)
		if i >= converted {
			value = t.charset.utf8Of(value)
		}
		if len(value) > shownKey {
			value = strings.ToValidUTF8(value[:shownKey], "") + "…"
		}
		fmt.Fprintf(&text, ", key %s %q", rel.Columns[i].Name, value)
	}
	return text.String()
}

// message converts the content of a message, which is in the database's encoding
// whatever that of the session is. What is no character in it becomes U+FFFD: a
// context is said of a change, it is not the change, and must not stop it.
func (t *texts) message(content []byte) []byte {
	if t == nil || isASCII(content) {
		return content
	}
	return []byte(t.charset.utf8Of(string(content)))
}

// names converts the names of a relation. What is no character in them is U+FFFD: a
// mapping can't name such a table or column, but the others of its publication
// must not suffer.
func (c *charset) names(rel *Relation) {
	if c == nil {
		return
	}
	rel.Schema, rel.Name = c.utf8Of(rel.Schema), c.utf8Of(rel.Name)
	for i := range rel.Columns {
		rel.Columns[i].Name = c.utf8Of(rel.Columns[i].Name)
	}
}
