package transform_test

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"backstory/capture"
	"backstory/transform"

	"pgregory.net/rapid"
)

func anyPlace(t *rapid.T, label string) transform.Place {
	return transform.Place{
		Pos: capture.Position{
			LSN:   capture.LSN(rapid.Uint64().Draw(t, label+" lsn")),
			Kind:  capture.Kind(rapid.IntRange(0, 1).Draw(t, label+" kind")),
			Index: rapid.Uint32().Draw(t, label+" change"),
		},
		Index: uint16(rapid.IntRange(0, 999).Draw(t, label+" event")),
	}
}

// A sequence is its place, and sorts as text as places do.
func TestSequence(t *testing.T) {
	t.Parallel()
	example := transform.Place{Pos: capture.Position{LSN: 0x15A2F30, Kind: capture.KindChange, Index: 42}, Index: 1}
	if got := string(transform.AppendSequence(nil, example)); got != "00000000015A2F30-1-0000000042-001" {
		t.Errorf("got %s", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		p, q := anyPlace(t, "p"), anyPlace(t, "q")
		if rapid.Bool().Draw(t, "near") {
			q.Pos.LSN = p.Pos.LSN
		}
		a, b := transform.AppendSequence(nil, p), transform.AppendSequence(nil, q)
		if back, err := transform.ParseSequence(a); err != nil || back != p {
			t.Fatalf("%s: got %+v, %v, want %+v", a, back, err, p)
		}
		if got, want := strings.Compare(string(a), string(b)), p.Compare(q); got*want < 0 || (got == 0) != (want == 0) {
			t.Fatalf("%s and %s compare as %d, the places as %d", a, b, got, want)
		}
	})
	for _, bad := range []string{
		"", "00000000015a2f30-1-0000000042-001", "00000000015A2F30-2-0000000042-001", "00000000015A2F30-1-4294967296-001",
		"00000000015A2F30-1-0000000042-0001", "00000000015A2F30-1-0000000042-0x1", "00000000015A2F30 1-0000000042-001",
	} {
		if p, err := transform.ParseSequence([]byte(bad)); err == nil {
			t.Errorf("%q: got %+v, want an error", bad, p)
		}
	}
}

// An id is that of RFC 9562, version 8, depends on each of its parts, and stays
// what it is from version to version of this program.
func TestEventID(t *testing.T) {
	t.Parallel()
	place := transform.Place{Pos: at(0x15A2F30, 42), Index: 1}
	base := transform.NewEventID(identity, "Product", []byte("4711"), place)
	const want = "c9d21c93-43fc-87bc-877c-451478877850"
	if got := base.String(); got != want {
		t.Errorf("got %s, want %s: ids must never change", got, want)
	}
	other := identity
	other.Timeline = 2
	elsewhere := identity
	elsewhere.Database = "shop"
	next := place
	next.Index = 2
	read := place
	read.Pos.Kind = capture.KindBackfill
	ids := []transform.EventID{
		base,
		transform.NewEventID(other, "Product", []byte("4711"), place),
		transform.NewEventID(elsewhere, "Product", []byte("4711"), place),
		transform.NewEventID(identity, "Produc", []byte("t4711"), place),
		transform.NewEventID(identity, "Product", []byte("4712"), place),
		transform.NewEventID(identity, "Product", []byte("4711"), next),
		transform.NewEventID(identity, "Product", []byte("4711"), read),
	}
	for i, id := range ids {
		if slices.Contains(ids[:i], id) {
			t.Errorf("id %d is that of another event", i)
		}
		if text := id.String(); text[14] != '8' || !strings.ContainsRune("89ab", rune(text[19])) {
			t.Errorf("%s is no UUID of version 8", text)
		}
	}

}

// A key is escaped as url.PathEscape does it, and splits into what it was.
func TestKey(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.String(), 1, 4).Draw(t, "parts")
		raw, escaped := make([][]byte, len(parts)), make([]string, len(parts))
		for i, p := range parts {
			raw[i], escaped[i] = []byte(p), url.PathEscape(p)
		}
		want := strings.Join(escaped, "/")
		if len(parts) == 1 {
			want = parts[0]
		}
		key := transform.AppendKey([]byte{}, raw...)
		if string(key) != want {
			t.Fatalf("%q: got %q, want %q", parts, key, want)
		}
		if back, err := transform.SplitKey(key, len(parts)); err != nil || !slices.Equal(back, parts) {
			t.Fatalf("%q: got %q, %v, want %q", key, back, err, parts)
		}
	})
	for _, bad := range []string{"a", "a/b/c", "a/%2", "a/%zz"} {
		if parts, err := transform.SplitKey([]byte(bad), 2); err == nil {
			t.Errorf("%q: got %q, want an error", bad, parts)
		}
	}
}
