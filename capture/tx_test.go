package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The messages of pgoutput, as a server writes them.

func beginMsg(at LSN, xid uint32) []byte {
	b := binary.BigEndian.AppendUint64([]byte{msgBegin}, uint64(at))
	b = binary.BigEndian.AppendUint64(b, 0)
	return binary.BigEndian.AppendUint32(b, xid)
}

func commitMsg(at, end LSN) []byte {
	b := binary.BigEndian.AppendUint64([]byte{msgCommit, 0}, uint64(at))
	b = binary.BigEndian.AppendUint64(b, uint64(end))
	return binary.BigEndian.AppendUint64(b, 0)
}

// relationMsg describes a table of text columns; the first is the key.
func relationMsg(id uint32, schema, name string, columns ...string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{msgRelation}, id)
	b = append(append(append(append(b, schema...), 0), name...), 0, 'd')
	b = binary.BigEndian.AppendUint16(b, uint16(len(columns)))
	for i, column := range columns {
		b = append(b, 0)
		if i == 0 {
			b[len(b)-1] = columnKeyFlag
		}
		b = append(append(b, column...), 0, 0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff)
	}
	return b
}

func tuple(b []byte, values ...string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(values)))
	for _, v := range values {
		switch v {
		case "NULL":
			b = append(b, columnNull)
		case "TOAST":
			b = append(b, columnUnchanged)
		default:
			b = binary.BigEndian.AppendUint32(append(b, columnText), uint32(len(v)))
			b = append(b, v...)
		}
	}
	return b
}

func rowMsg(kind byte, id uint32) []byte { return binary.BigEndian.AppendUint32([]byte{kind}, id) }

func insertMsg(id uint32, values ...string) []byte {
	return tuple(append(rowMsg(msgInsert, id), tupleNew), values...)
}

func truncateMsg(ids ...uint32) []byte {
	b := binary.BigEndian.AppendUint32([]byte{msgTruncate}, uint32(len(ids)))
	b = append(b, 0)
	for _, id := range ids {
		b = binary.BigEndian.AppendUint32(b, id)
	}
	return b
}

func messageMsg(transactional bool, at LSN, prefix, content string) []byte {
	b := []byte{msgMessage, 0}
	if transactional {
		b[1] = messageTransactional
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = append(append(b, prefix...), 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(content)))
	return append(b, content...)
}

func say(content string) []byte { return messageMsg(true, 1, contextPrefix, content) }

// reason is the message that gives a reason.
func reason(text string) []byte { return say(`{"reason":"` + text + `"}`) }

// Two published tables, of which one is mapped.
const mappedID, otherID = 1, 2

var tablesMsgs = [][]byte{
	relationMsg(mappedID, "public", "products", "id", "name"),
	relationMsg(otherID, "public", "other", "id"),
}

func noTypes(context.Context, []uint32) (map[uint32]ColumnType, error) {
	return nil, errors.New("the catalog was asked")
}

func testAssembler(t require, msgs ...[]byte) *assembler {
	rels := newRelations([]TableRef{{Schema: "public", Name: "products"}}, catalog{}, noTypes)
	a := newAssembler(rels, 4<<20, 0)
	feed(t, a, tablesMsgs...)
	feed(t, a, msgs...)
	return a
}

// require is what testing.TB and rapid.T have in common.
type require interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

func feed(t require, a *assembler, msgs ...[]byte) {
	t.Helper()
	for _, m := range msgs {
		if err := a.message(context.Background(), 0, m); err != nil {
			t.Fatalf("message %q: %v", m, err)
		}
	}
}

// short describes changes: ordinal, operation, key, reason.
func short(changes []Change) []string {
	var out []string
	for _, c := range changes {
		text := fmt.Sprintf("%d %s", c.Pos.Index, c.Op)
		if len(c.New) > 0 {
			text += " " + string(c.New[0].Data)
		}
		if c.Context != nil {
			text += " " + string(c.Context.Reason)
		}
		out = append(out, text)
	}
	return out
}

// What a batch points to is not touched while the following one is built, of
// whatever sizes the two are, nor by what a held transaction carries over.
func TestBatchStaysDuringTheNext(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := testAssembler(t)
		a.next()
		var before []Change
		var want []string
		id, at := 0, LSN(100)
		for range rapid.IntRange(2, 8).Draw(t, "batches") {
			for range rapid.IntRange(0, 4).Draw(t, "transactions") {
				n := rapid.SampledFrom([]int{1, 3, 700, 1500}).Draw(t, "changes")
				feed(t, a, beginMsg(at, 7))
				feed(t, a, inserts(id+1, id+n)...)
				if rapid.Bool().Draw(t, "context at the end") {
					feed(t, a, reason("r"+fmt.Sprint(id)))
				}
				feed(t, a, commitMsg(at, at+8))
				id, at = id+n, at+16
			}
			open := rapid.Bool().Draw(t, "open") // carried over into the next batch
			if open {
				feed(t, a, beginMsg(at, 8))
				feed(t, a, inserts(id+1, id+2)...)
			}
			if diff := cmp.Diff(want, short(before)); diff != "" {
				t.Fatalf("the batch before has changed (-was +is):\n%s", diff)
			}
			before = a.batch().Changes
			want = short(before)
			a.next()
			if open {
				feed(t, a, commitMsg(at, at+8))
				id, at = id+2, at+16
			}
		}
	})
}

func inserts(from, to int) (msgs [][]byte) {
	for i := from; i <= to; i++ {
		msgs = append(msgs, insertMsg(mappedID, fmt.Sprint(i), "x"))
	}
	return msgs
}

func TestContextOfAHeldTransaction(t *testing.T) {
	t.Parallel()
	ins := func(id string) []byte { return insertMsg(mappedID, id, "x") }
	tests := []struct {
		name string
		msgs [][]byte
		want []string
	}{
		{"none", [][]byte{ins("a")}, []string{"1 insert a"}},
		{"before", [][]byte{reason("r"), ins("a")}, []string{`1 insert a "r"`}},
		{"after", [][]byte{ins("a"), ins("b"), reason("r")}, []string{`1 insert a "r"`, `2 insert b "r"`}},
		{"between: the first is also for those before it", [][]byte{ins("a"), reason("r"), ins("b"), reason("s"), ins("c")},
			[]string{`1 insert a "r"`, `2 insert b "r"`, `3 insert c "s"`}},
		{"cleared", [][]byte{reason("r"), ins("a"), say("{}"), ins("b")}, []string{`1 insert a "r"`, "2 insert b"}},
		{"cleared first", [][]byte{ins("a"), say("{}"), ins("b"), reason("r"), ins("c")}, []string{"1 insert a", "2 insert b", `3 insert c "r"`}},
		{"last of all is for none", [][]byte{reason("r"), ins("a"), reason("s")}, []string{`1 insert a "r"`}},
		{"other prefix", [][]byte{messageMsg(true, 1, "backstory.contexts", `{"reason":"r"}`), ins("a")}, []string{"1 insert a"}},
		{"not transactional", [][]byte{messageMsg(false, 1, contextPrefix, `{"reason":"r"}`), ins("a")}, []string{"1 insert a"}},
		{"truncate", [][]byte{truncateMsg(otherID, mappedID), reason("r")}, []string{`2 truncate "r"`}},
		{"rows of other tables count", [][]byte{insertMsg(otherID, "z"), ins("a"), insertMsg(otherID, "z"), ins("b")},
			[]string{"2 insert a", "4 insert b"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := testAssembler(t, beginMsg(10, 1))
			feed(t, a, tt.msgs...)
			if got := a.batch(); len(got.Changes) != 0 || got.Reached != 10 || got.End != 0 {
				t.Errorf("before the commit: got %d changes, reached %s, end %s", len(got.Changes), got.Reached, got.End)
			}
			a.next()
			feed(t, a, commitMsg(10, 20), beginMsg(20, 2), insertMsg(mappedID, "n", "x"), commitMsg(20, 30))
			want := append(slices.Clone(tt.want), "1 insert n") // a context ends with its transaction
			if diff := cmp.Diff(want, short(a.batch().Changes)); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			if got := a.batch(); got.Reached != 30 || got.End != 30 {
				t.Errorf("after the commit: reached %s, end %s", got.Reached, got.End)
			}
		})
	}
}

func TestLargeTransactionIsNotHeld(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", heldBytes)
	tests := []struct {
		name string
		msgs [][]byte
		held bool
	}{
		{"as many changes as are held", inserts(1, heldChanges), true},
		{"one more", inserts(1, heldChanges+1), false},
		{"rows of other tables are not held", append(inserts(1, heldChanges), insertMsg(otherID, "z")), true},
		{"as many bytes as are held", [][]byte{insertMsg(mappedID, "", big[21:])}, true},
		{"one more byte", [][]byte{insertMsg(mappedID, "", big[16:])}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := testAssembler(t, beginMsg(10, 1))
			feed(t, a, tt.msgs...)
			n := len(a.batch().Changes)
			if got := n == 0; got != tt.held {
				t.Fatalf("held: got %t, want %t", got, tt.held)
			}
			feed(t, a, reason("r"), insertMsg(mappedID, "last", "x"), commitMsg(10, 20))
			changes := a.batch().Changes
			if got := changes[0].Context != nil; got != tt.held {
				t.Errorf("the first change has a context: got %t, want %t", got, tt.held)
			}
			if changes[len(changes)-1].Context == nil {
				t.Error("the change after the message has no context")
			}
		})
	}
}

func TestMessagesInWrongOrder(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		msgs [][]byte
		want error
	}{
		{"row outside", [][]byte{insertMsg(mappedID, "a", "b")}, errNoTransaction},
		{"truncate outside", [][]byte{truncateMsg(mappedID)}, errNoTransaction},
		{"context outside", [][]byte{reason("r")}, errNoTransaction},
		{"commit outside", [][]byte{commitMsg(1, 2)}, errNoTransaction},
		{"begin inside", [][]byte{beginMsg(1, 1), beginMsg(2, 2)}, errInTransaction},
		{"other commit", [][]byte{beginMsg(1, 1), commitMsg(2, 3)}, errOtherCommit},
		{"other columns", [][]byte{beginMsg(1, 1), insertMsg(mappedID, "a")}, errColumns},
		{"trailing byte", [][]byte{append(beginMsg(1, 1), 0)}, errTrailing},
		{"missing byte", [][]byte{beginMsg(1, 1)[:20]}, errShort},
		{"empty", [][]byte{{}}, errShort},
		{"begin prepare", [][]byte{{msgBeginPrepare}}, errTwoPhase},
		{"prepare", [][]byte{beginMsg(1, 1), {msgPrepare}}, errTwoPhase},
		{"commit prepared", [][]byte{{msgCommitPrepared, 0}}, errTwoPhase},
		{"rollback prepared", [][]byte{{msgRollbackPrepared, 0}}, errTwoPhase},
		{"stream prepare", [][]byte{{msgStreamPrepare, 0}}, errTwoPhase},
		{"binary", [][]byte{beginMsg(1, 1), append(rowMsg(msgInsert, mappedID), tupleNew, 0, 2, columnBinary, 0, 0, 0, 0, columnNull)}, errBinary},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := testAssembler(t)
			var err error
			for _, m := range tt.msgs {
				err = a.message(t.Context(), 0x42, m)
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if !strings.Contains(fmt.Sprint(err), " at 0/") {
				t.Errorf("%q does not say where", err)
			}
		})
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	type progress struct {
		Reached, End LSN
		Prompt       bool
	}
	a := testAssembler(t)
	check := func(what string, want progress) {
		t.Helper()
		got := progress{a.batch().Reached, a.batch().End, a.prompt}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	a.keepalive(100)
	check("keepalive", progress{100, 100, false})
	a.keepalive(90)
	check("keepalive from the past", progress{100, 100, false})
	feed(t, a, messageMsg(false, 110, "someone's", ""))
	check("message of others", progress{110, 100, false})
	feed(t, a, messageMsg(false, 120, "backstory.watermark", ""))
	check("own message", progress{120, 100, true})
	a.next()
	check("following batch", progress{120, 100, false})
	feed(t, a, beginMsg(130, 1))
	check("begin", progress{130, 100, false})
	a.keepalive(500)
	check("keepalive inside", progress{130, 100, false})
	feed(t, a, commitMsg(130, 140))
	check("commit", progress{140, 140, false})
}

// Wherever a stream is cut into batches, the changes are the same.
func TestBatchesDoNotChangeTheChanges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var msgs [][]byte
		at, row := LSN(10), 0
		for range rapid.IntRange(1, 4).Draw(t, "transactions") {
			msgs = append(msgs, beginMsg(at, uint32(at)))
			for range rapid.IntRange(0, 5).Draw(t, "parts") {
				switch rapid.IntRange(0, 4).Draw(t, "part") {
				case 0:
					msgs = append(msgs, reason(fmt.Sprint("r", row)))
				case 1:
					msgs = append(msgs, insertMsg(otherID, "z"), say("{}"))
				case 2:
					msgs = append(msgs, truncateMsg(otherID, mappedID))
				case 3:
					msgs = append(msgs, inserts(row, row+heldChanges/2)...)
					row += heldChanges/2 + 1
				default:
					msgs = append(msgs, insertMsg(mappedID, fmt.Sprint(row), "TOAST"))
					row++
				}
			}
			msgs = append(msgs, commitMsg(at, at+5))
			at += LSN(rapid.IntRange(5, 9).Draw(t, "distance"))
		}
		whole := testAssembler(t, msgs...)
		want := short(whole.batch().Changes)

		a := testAssembler(t)
		var got []string
		var last Batch
		for i, m := range msgs {
			feed(t, a, m)
			if i == len(msgs)-1 || rapid.IntRange(0, 20).Draw(t, "cut") == 0 {
				b := a.batch()
				got = append(got, short(b.Changes)...)
				if b.Reached < last.Reached || b.End < last.End || b.End > b.Reached {
					t.Errorf("positions went back: %s %s after %s %s", b.Reached, b.End, last.Reached, last.End)
				}
				last = *b
				a.next()
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("changes (-one batch +several):\n%s", diff)
		}
	})
}

// From the connection's bytes to the batch, all kinds of rows of a steady stream.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	for _, encoding := range []string{"UTF8", "LATIN1"} {
		t.Run(encoding, func(t *testing.T) { steadyState(t, encoding) })
	}
}

func steadyState(t *testing.T, encoding string) {
	t.Helper()
	update := tuple(append(tuple(append(rowMsg(msgUpdate, mappedID), tupleKey), "1", "NULL"), tupleNew), "2", "TOAST")
	remove := tuple(append(rowMsg(msgDelete, mappedID), tupleOld), "2", "Gr\xfc\xdfe")
	msgs := slices.Concat([][]byte{beginMsg(10, 1)}, inserts(1, 500), slices.Repeat([][]byte{update, remove, insertMsg(otherID, "z")}, 200),
		[][]byte{truncateMsg(otherID, mappedID), messageMsg(true, 1, "someone's", "x"), commitMsg(10, 20)})
	var stream []byte
	for _, m := range msgs {
		stream = binary.BigEndian.AppendUint32(append(stream, wireCopyData), uint32(4+25+len(m)))
		stream = append(append(append(stream, streamData), make([]byte, 24)...), m...)
	}
	s := &Stream{asm: testAssembler(t), wire: newWire(&piecewise{data: stream, piece: 5000, again: true})}
	c, _ := charsetOf(encoding)
	s.asm.texts = newTexts(c, []TableRef{{Schema: "public", Name: "products"}}, nil)
	batch := func() {
		s.asm.next()
		for !s.asm.full() {
			if err := s.consume(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := s.wire.read(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 4 { // the two arenas are filled by turns
		batch()
	}
	if got := testing.AllocsPerRun(20, batch); got != 0 {
		t.Errorf("got %v allocations for a batch of %d changes, want 0", got, len(s.asm.batch().Changes))
	}
}
