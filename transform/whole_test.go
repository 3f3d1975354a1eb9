package transform_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"backstory/capture"
	"backstory/transform"
)

// A row that a backfill reads has the image and the data that an insert of it would
// have had, also where escapes need more room than was set aside.
func TestReadRowEqualsInsert(t *testing.T) {
	rel, row := wide()
	tr := transform.New(mustMapping(t, productsMapping), identity)
	letters := rapid.SampledFrom([]rune("ab\"\\\n\x01é€"))
	var out transform.Output
	rapid.Check(t, func(t *rapid.T) {
		texts := row("1.50", "7", "5")
		for _, i := range []int{1, 4, 5} {
			texts[i] = rapid.StringOfN(letters, 0, rapid.SampledFrom([]int{0, 30, 70_000}).Draw(t, "length"), -1).Draw(t, "text")
		}
		if rapid.Bool().Draw(t, "null") {
			texts[4] = null
		}
		if rapid.Bool().Draw(t, "reset") {
			out.Reset()
		}
		before := len(out.Events)
		var inserted, read memoryOne
		if err := tr.Apply(&out, insertion(rel, at(1, 1), texts...), &inserted); err != nil {
			t.Fatal(err)
		}
		c := reading(rel, 2, texts...)
		c.Pos.Kind = capture.KindBackfill
		if err := tr.Row(&out, c, &read, false); err != nil {
			t.Fatal(err)
		}
		events := out.Events[before:]
		if diff := cmp.Diff(string(events[0].Data), string(events[1].Data)); diff != "" {
			t.Errorf("data of a row that is read, -as inserted +as read:\n%s", diff)
		}
		if diff := cmp.Diff(string(inserted.entry.Image), string(read.entry.Image)); diff != "" || string(read.entry.Image) != string(events[1].State) {
			t.Errorf("image of a row that is read, -as inserted +as read:\n%s", diff)
		}
		if events[1].Type != "ProductImported.v1" {
			t.Errorf("a row that was never known became %s", events[1].Type)
		}
	})
}
