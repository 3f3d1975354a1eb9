package transform_test

import (
	"errors"
	"strings"
	"testing"

	"backstory/capture"
	"backstory/transform"
)

// since is the products table whose description is what it is since a position.
func since(lsn capture.LSN) *capture.Relation {
	rel := products()
	rel.KeyColumns = []int{0}
	rel.Columns[4].Since = lsn
	return rel
}

// A value that WAL leaves out comes from an image only if that was made while the
// column was the one that it is.
func TestFilledFromYoungImagesOnly(t *testing.T) {
	t.Parallel()
	const long = "long"
	tests := []struct {
		name   string
		base   capture.LSN
		made   capture.LSN // of the image
		since  capture.LSN
		key    string // of the update's new row
		again  bool
		latest string // of that key
	}{
		{"as it always was", 0, 10, 0, "1", false, `{"id":1,"name":"n","price":"2","stock":1,"description":"long"}`},
		{"younger image", 0, 10, 10, "1", false, `{"id":1,"name":"n","price":"2","stock":1,"description":"long"}`},
		{"older image", 0, 10, 11, "1", true, `{"id":1,"name":"n","price":"2","stock":1,"description":"long"}`},
		{"column of an unseen shape", 0, 10, capture.Never, "1", true, `{"id":1,"name":"n","price":"2","stock":1,"description":"long"}`},
		{"younger image above a base", 1000, 1010, 10, "1", false, `{"id":1,"name":"n","price":"2","stock":1,"description":"long"}`},
		{"older image above a base", 1000, 1010, 11, "1", true, `{"id":1,"name":"n","price":"2","stock":1,"description":"long"}`},
		{"image from below the base", 1000, 900, 1, "1", true, `{"id":1,"name":"n","price":"2","stock":1,"description":"long"}`},
		{"key changed, younger image", 0, 10, 10, "2", false, `{"id":2,"name":"n","price":"2","stock":1,"description":"long"}`},
		{"key changed, older image", 0, 10, 11, "2", true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tr, st := transform.New(mustMapping(t, productsMapping), identity), newMemory()
			tr.Rebase(tt.base)
			var out transform.Output
			rel := since(tt.since)
			if err := tr.Apply(&out, insertion(since(0), at(tt.made, 1), "1", "n", "1", "1", long), st); err != nil {
				t.Fatal(err)
			}
			c := updating(rel, at(tt.base+20, 1), tt.key, "n", "2", "1", unchanged)
			if tt.key != "1" {
				c.Old = keyTuple(rel, "1")
			}
			if err := tr.Apply(&out, c, st); err != nil {
				t.Fatal(err)
			}
			if st.again[tt.key] != tt.again {
				t.Errorf("to be read again: got %v, want %v", st.again[tt.key], tt.again)
			}
			if got := string(st.entries[tt.key].Image); got != tt.latest {
				t.Errorf("image: got %s, want %s", got, tt.latest)
			}
		})
	}
}

// An old row says nothing against an image that is older than the column, and NULL of
// a column that was added with a default is none.
func TestOldRowOfYoungerColumns(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		since  capture.LSN
		filled bool
		old    string
		want   int
	}{
		{"same column", 0, false, "other", 1},
		{"younger column", 11, false, "other", 0},
		{"default that the old row lacks", 0, true, null, 0},
		{"default, and another value", 0, true, "other", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tr, st := transform.New(mustMapping(t, productsMapping), identity), newMemory()
			var out transform.Output
			if err := tr.Apply(&out, insertion(since(0), at(10, 1), "1", "n", "1", "1", "d"), st); err != nil {
				t.Fatal(err)
			}
			rel := since(tt.since)
			rel.Columns[4].Filled = tt.filled
			c := updating(rel, at(20, 1), "1", "n", "2", "1", "d")
			c.Old, c.OldFull = tuple("1", "n", "1", "1", tt.old), true
			if err := tr.Apply(&out, c, st); err != nil {
				t.Fatal(err)
			}
			if out.Mismatches != tt.want {
				t.Errorf("mismatches: got %d, want %d", out.Mismatches, tt.want)
			}
		})
	}
}

// What WAL does not say enough of is an error of its own kind, and changes nothing.
func TestUnmappable(t *testing.T) {
	t.Parallel()
	bare := func() *capture.Relation { // another index is the identity
		rel := since(0)
		rel.Columns[0].Key, rel.Columns[1].Key = false, true
		return rel
	}
	lost := since(0)
	lost.Problem = "column tags has a type that is gone"
	for _, tt := range []struct {
		name   string
		change *capture.Change
		says   string // empty: it can be mapped
	}{
		{"insert", insertion(bare(), at(20, 1), "2", "n", "1", "1", "d"), ""},
		{"update", updating(bare(), at(20, 1), "1", "n", "2", "1", "d"), "may have changed the key"},
		{"delete", deletion(bare(), at(20, 1), "1"), ""},
		{"insert of a relation that nobody understands", insertion(lost, at(20, 1), "2", "n", "1", "1", "d"), "a type that is gone"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tr, st := transform.New(mustMapping(t, productsMapping), identity), newMemory()
			var out transform.Output
			if err := tr.Apply(&out, insertion(since(0), at(10, 1), "1", "n", "1", "1", "d"), st); err != nil {
				t.Fatal(err)
			}
			puts := st.puts
			err := tr.Apply(&out, tt.change, st)
			var unmappable *transform.UnmappableError
			switch {
			case tt.says == "" && err != nil:
				t.Fatal(err)
			case tt.says != "" && (!errors.As(err, &unmappable) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "backfill --reconcile")):
				t.Errorf("got %v, want an UnmappableError that says %q", err, tt.says)
			case tt.says != "" && st.puts != puts:
				t.Error("it has changed the state")
			}
		})
	}
	t.Run("delete without the key", func(t *testing.T) {
		t.Parallel()
		tr, st := transform.New(mustMapping(t, productsMapping), identity), newMemory()
		c := deletion(bare(), at(20, 1), "1")
		c.Old = tuple(absent, "n", absent, absent, absent)
		var unmappable *transform.UnmappableError
		if err := tr.Apply(&transform.Output{}, c, st); !errors.As(err, &unmappable) {
			t.Errorf("got %v, want an UnmappableError", err)
		}
	})
}
