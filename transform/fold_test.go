package transform_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"backstory/transform"
)

func TestFoldRefuses(t *testing.T) {
	t.Parallel()
	have := transform.Entry{Version: 3, Place: transform.Place{Pos: at(0x30, 1), Index: 1}, Image: []byte(`{"id":1,"a":2}`)}
	deleted := transform.Entry{Version: 3, Place: have.Place}
	place := transform.Place{Pos: at(0x40, 1), Index: 1}
	for _, tt := range []struct {
		name    string
		entry   transform.Entry
		topic   transform.Topic
		version uint64
		data    string
		want    string
	}{
		{"a missing version", have, transform.Events, 5, `{"old":{},"new":{"a":3},"reason":null}`, "version 4 is missing"},
		{"a version again", have, transform.Events, 3, `{"old":{},"new":{"a":3},"reason":null}`, "version 4 is missing"},
		{"an old version in latest", have, transform.Latest, 3, "", "no newer version"},
		{"a change of a deleted aggregate", deleted, transform.Events, 4, `{"old":{"a":2},"new":{"a":3},"reason":null}`, "does not exist"},
		{"no data", have, transform.Events, 4, "", "not of the form"},
		{"members missing", have, transform.Events, 4, `{"old":{},"new":{"a":3}}`, "not of the form"},
		{"another order", have, transform.Events, 4, `{"new":{"a":3},"old":{},"reason":null}`, "not of the form"},
		{"new is no object", have, transform.Events, 4, `{"old":{},"new":[1],"reason":null}`, "not of the form"},
		{"broken off", have, transform.Events, 4, `{"old":{},"new":{"a":3},"reason":`, "not of the form"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			entry := tt.entry
			s := transform.Stored{Topic: tt.topic, Event: transform.Event{Key: []byte("1"), Version: tt.version, Place: place, Data: []byte(tt.data)}}
			applied, _, err := transform.Fold(&entry, &s, nil)
			var broken *transform.FoldError
			if !errors.As(err, &broken) || !broken.Refused() || applied || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, %v, want a *FoldError with %q", applied, err, tt.want)
			}
			if entry.Version != tt.entry.Version || !bytes.Equal(entry.Image, tt.entry.Image) {
				t.Errorf("the entry was changed to %+v", entry)
			}
		})
	}
}

// The fold is that of a decoder: whatever JSON the values are, members are
// replaced where they stand and new ones appended, byte for byte.
func FuzzFold(f *testing.F) {
	f.Add(`{"a":[1,"]}"],"b":"\\\""}`, ` {"x" : {"}":"{"}} `)
	f.Add(`1e400`, `"\u00e9\\"`)
	f.Add(`null`, "[[],{},\"\"]")
	f.Fuzz(func(t *testing.T, a, b string) {
		if !json.Valid([]byte(a)) || !json.Valid([]byte(b)) {
			t.Skip()
		}
		entry := transform.Entry{Version: 1, Place: transform.Place{Pos: at(1, 1), Index: 1}, Image: []byte(`{"id":1,"v":` + a + `,"w":` + a + `}`)}
		s := transform.Stored{Event: transform.Event{Version: 2, Place: transform.Place{Pos: at(2, 1), Index: 1},
			Data: []byte(`{"old":{"v":` + a + `},"new":{"v":` + b + `,"z":` + b + `},"reason":` + b + `}`)}}
		if applied, _, err := transform.Fold(&entry, &s, nil); err != nil || !applied {
			t.Fatalf("got %v, %v", applied, err)
		}
		if want := `{"id":1,"v":` + b + `,"w":` + a + `,"z":` + b + `}`; string(entry.Image) != want {
			t.Errorf("got %s, want %s", entry.Image, want)
		}
		data, err := transform.ParseData(s.Data)
		if err != nil || string(data.Reason) != b {
			t.Errorf("got reason %s, %v, want %s", data.Reason, err, b)
		}
	})
}
