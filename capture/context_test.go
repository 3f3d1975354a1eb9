package capture

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestParseContext(t *testing.T) {
	t.Parallel()
	reason := func(json string) *Context { return &Context{Reason: []byte(json)} }
	tests := []struct {
		name    string
		content string
		want    *Context
	}{
		{"everything", `{"reason":"spring sale","actor":"ann","correlation_id":"c","causation_id":"d","more":1}`,
			&Context{Reason: []byte(`"spring sale"`), Actor: "ann", CorrelationID: "c", CausationID: "d"}},
		{"an empty object clears", `{}`, nil},
		{"an object that says nothing clears", `{"Reason":"x","reason":null,"actor":null,"actor2":"y"}`, nil},
		{"nothing clears", ``, nil},
		{"white space clears", " \n", nil},
		{"no JSON", `it's <cheap> "today"`, reason(`"it's <cheap> \"today\""`)},
		{"cut short", `{"reason":"x"`, reason(`"{\"reason\":\"x\""`)},
		{"no object: string", `"x"`, reason(`"\"x\""`)},
		{"no object: null", `null`, reason(`"null"`)},
		{"no object: number", `17`, reason(`"17"`)},
		{"no object: array", `[1]`, reason(`"[1]"`)},
		{"reason that is no string", `{"reason": {"b": 1, "a": [1.50, null]} }`, reason(`{"b":1,"a":[1.50,null]}`)},
		{"reason that is false", `{"reason":false}`, reason(`false`)},
		{"empty reason", `{"reason":""}`, reason(`""`)},
		{"reason with escapes", `{"reason":"\u00e9\t\u0000"}`, reason(`"é\t\u0000"`)},
		{"actor that is no string", `{"actor": {"id": 7}}`, &Context{Actor: `{"id":7}`}},
		{"invalid UTF-8 in a string", "{\"reason\":\"a\xffb\"}", reason("\"a\uFFFDb\"")},
		{"invalid UTF-8 in an object", "{\"reason\":{\"a\xff\":1}}", reason("{\"a\uFFFD\":1}")},
		{"invalid UTF-8", "\xff\x00", reason(`"` + "\uFFFD" + `\u0000"`)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, parseContext([]byte(tt.content))); diff != "" {
				t.Errorf("context (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParseContext(f *testing.F) {
	for _, seed := range []string{`{"reason":"x","actor":1}`, `{}`, "\xff", `{"reason":[" "]}`, `[`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		got := parseContext(content)
		if got == nil {
			return
		}
		if got.Reason != nil && (!json.Valid(got.Reason) || !utf8.Valid(got.Reason)) {
			t.Errorf("reason %q is no JSON", got.Reason)
		}
		for _, text := range []string{got.Actor, got.CorrelationID, got.CausationID} {
			if !utf8.ValidString(text) {
				t.Errorf("%q is no UTF-8", text)
			}
		}
	})
}
