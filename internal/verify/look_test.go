package verify

import (
	"testing"

	"backstory/capture"
	"backstory/transform"
)

// at makes a version of a row that a transaction has made.
func at(number uint64, lsn capture.LSN, xid uint32, image string) *version {
	v := &version{number: number, xid: xid, place: transform.Place{Pos: capture.Position{LSN: lsn, Kind: capture.KindChange, Index: 1}, Index: 1}}
	if xid == 0 {
		v.place.Pos.Kind = capture.KindBackfill
	}
	if image != "" {
		v.exists, v.image = true, []byte(image)
	}
	return v
}

// lookAt makes a look at a key of which state and latest have the same version.
func lookAt(row string, same *version) *look {
	l := &look{key: "k", latest: *same}
	if row != "" {
		l.row = []byte(row)
	}
	l.state = StateEntry{Version: same.number, Place: same.place, XID: same.xid}
	if same.exists {
		l.state.Digest = digest(same.image)
	}
	return l
}

const (
	one   = `{"id":1,"n":1}`
	two   = `{"id":1,"n":2}`
	three = `{"id":1,"n":3}`
)

// seeing is a snapshot that sees all transactions below xmax but those that run.
func seeing(xmax uint64, running ...uint64) *sight {
	s := &capture.Snapshot{Xmin: xmax, Xmax: xmax, Running: running}
	if len(running) > 0 {
		s.Xmin = running[0]
	}
	return &sight{snapshot: s, horizon: 10, before: 100}
}

func (l *look) want(t *testing.T, settled bool, found int) {
	t.Helper()
	if got := l.judge(); got != settled || len(l.found) != found {
		t.Errorf("settled %t, want %t; found %d, want %d: %v", got, settled, len(l.found), found, l.found)
	}
}

// A row is held against the newest version that its snapshot saw, whatever the
// others have come to meanwhile.
func TestRowOfAnOlderVersion(t *testing.T) {
	t.Parallel()
	l := lookAt(one, at(3, 130, 53, three))
	s := seeing(52)
	l.begin(at(1, 90, 51, one), s)
	l.meet(at(2, 120, 52, two), s)
	l.meet(at(3, 130, 53, three), s)
	l.want(t, true, 0)
}

// A key whose newest version is never visible is decided by its history: what was
// invisible at one look is visible at a later one.
func TestHotKeyIsDecidedByItsHistory(t *testing.T) {
	t.Parallel()
	l := lookAt(one, at(2, 95, 52, two))
	l.begin(at(2, 95, 52, two), seeing(53, 52))
	l.want(t, false, 0)
	trail := l.trail
	trail = append(trail, at(3, 130, 53, three).own()) // came by between the looks

	l = lookAt(two, at(3, 130, 53, three))
	l.trail = trail
	l.begin(at(3, 130, 53, three), seeing(54, 53))
	l.want(t, true, 0)
	if l.base != 3 || l.newest != 3 {
		t.Errorf("base %d, newest %d, want 3 and 3", l.base, l.newest)
	}
}

// What a backfill of the bridge has read may be what this look saw, or newer.
func TestVersionOfABackfill(t *testing.T) {
	t.Parallel()
	s := seeing(60)
	later := at(2, 150, 0, two) // read from the table after the place that s.before is
	l := lookAt(two, later)
	l.begin(at(1, 90, 51, one), s)
	l.meet(later, s)
	l.want(t, false, 0)

	s.before = 160
	l = lookAt(two, later)
	l.begin(later, s)
	l.want(t, true, 0)
}

// A row that the bridge is going to read again is not decided yet.
func TestRowToBeReadAgain(t *testing.T) {
	t.Parallel()
	l := lookAt(two, at(1, 90, 51, one))
	l.state.Again = true
	l.begin(at(1, 90, 51, one), seeing(60))
	if l.judge() {
		t.Error("settled")
	}
}

// A state that has only a digest of an image can't name the field: the key is
// looked at again with images.
func TestDigestIsNoAnswer(t *testing.T) {
	t.Parallel()
	l := lookAt(one, at(1, 90, 51, one))
	l.state.Digest = digest([]byte(two))
	l.begin(at(1, 90, 51, one), seeing(60))
	if l.judge() {
		t.Error("settled")
	}
	l = lookAt(one, at(1, 90, 51, one))
	l.state.Digest, l.state.Image = digest([]byte(two)), []byte(two)
	l.begin(at(1, 90, 51, one), seeing(60))
	l.want(t, true, 1)
	if d := l.found[0]; d.Field != "n" || string(d.Values[0].Value) != "2" || string(d.Values[1].Value) != "1" {
		t.Errorf("got %s", &d)
	}
}

// A deleted aggregate keeps its version, also where a later change is noted.
func TestNotedAggregate(t *testing.T) {
	t.Parallel()
	gone := at(2, 90, 51, "")
	l := lookAt("", gone)
	l.state.Noted, l.state.XID, l.state.Place = true, 55, transform.Place{Pos: capture.Position{LSN: 95}}
	l.begin(gone, seeing(60))
	l.want(t, true, 0)
}

// Without its first events an aggregate is compared between the others.
func TestBrokenHistory(t *testing.T) {
	t.Parallel()
	broken := at(5, 90, 51, `{"n":1}`)
	broken.broken = true
	l := lookAt(one, at(5, 90, 51, one))
	l.begin(broken, seeing(60))
	l.want(t, true, 0)

	l = lookAt(two, at(5, 90, 51, one))
	l.begin(broken, seeing(60))
	l.want(t, true, 1)
	if d := l.found[0]; d.Values[0].Side != Table || d.Values[1].Side != Latest {
		t.Errorf("got %s", &d)
	}
}

// The latest topic may not be behind the state: it is written first.
func TestLatestBehindTheState(t *testing.T) {
	t.Parallel()
	s := seeing(60)
	l := lookAt(two, at(2, 120, 52, two))
	l.latest = *at(1, 90, 51, one)
	l.begin(at(1, 90, 51, one), s)
	l.meet(at(2, 120, 52, two), s)
	l.want(t, true, 1)
	if d := l.found[0]; d.Problem != Behind || d.Values[0].Side != Latest || d.Values[1].Side != State {
		t.Errorf("got %s", &d)
	}
}

func TestUnequal(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, left, right string
		loose             bool
		want              []string
	}{
		{"equal", one, one, false, nil},
		{"a field", one, two, false, []string{"n"}},
		{"order counts", `{"a":1,"b":2}`, `{"b":2,"a":1}`, false, []string{""}},
		{"order of a row does not", `{"a":1,"b":2}`, `{"b":2,"a":1}`, true, nil},
		{"null is not none", `{"a":1,"b":null}`, `{"a":1}`, false, []string{"b"}},
		{"a column that came or went", `{"a":1,"b":null}`, `{"a":1,"c":null}`, true, nil},
		{"a column that went with its value", `{"a":1}`, `{"a":1,"c":5}`, true, []string{"c"}},
	} {
		fields, err := unequal([]byte(tt.left), []byte(tt.right), tt.loose)
		if err != nil {
			t.Fatal(err)
		}
		names := make([]string, 0, len(fields))
		for _, f := range fields {
			names = append(names, f.name)
		}
		if len(names) != len(tt.want) || len(names) > 0 && names[0] != tt.want[0] {
			t.Errorf("%s: got %q, want %q", tt.name, names, tt.want)
		}
	}
	if _, err := unequal([]byte(`[]`), []byte(`{}`), true); err == nil {
		t.Error("no error for what is no object")
	}
}
