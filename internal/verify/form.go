package verify

import "backstory/capture"

// form says which fields of a row are younger than an image: a table's columns may
// have changed, and a row shows that at its next change.
type form struct {
	base  capture.LSN            // added to the positions of versions
	since map[string]capture.LSN // by field of a column that is there
	gone  capture.LSN            // when a field that is none may have lost its column
}

// formOf works out the form of the table as it is now, after what the bridge knows.
func (v *Verifier) formOf(known *capture.Shape, base capture.LSN) *form {
	if v.info.Shape.Table == 0 {
		return nil
	}
	now := v.info.Shape.Follow(known, capture.Never, 0)
	f := &form{base: base, since: make(map[string]capture.LSN, len(now.Columns)), gone: now.At}
	for _, c := range now.Columns {
		field := c.Name
		if named, ok := v.table.Fields[field]; ok {
			field = named
		}
		f.since[field] = c.Since
	}
	return f
}

// explains reports whether every field that differs is younger than the version. What
// was there at the first look at the table is younger than none.
func (f *form) explains(fields []field, v *version) bool {
	if f == nil || v == nil {
		return false
	}
	pos := v.place.Pos.LSN
	for i := range fields {
		since, there := f.since[fields[i].name]
		if !there {
			since = f.gone
		}
		if since == 0 || pos >= f.base && pos-f.base >= since {
			return false
		}
	}
	return true
}
