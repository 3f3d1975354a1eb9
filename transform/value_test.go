package transform_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"backstory/capture"
	"backstory/transform"
)

// column types that the golden file goes through: name, type, element type.
type columnType struct {
	name       string
	base, elem uint32
}

// valueCases are texts as Postgres prints them under the pinned settings.
var valueCases = []struct {
	columnType
	texts []string
}{
	{columnType{"bool", 16, 0}, []string{"t", "f", null}},
	{columnType{"int2", 21, 0}, []string{"-32768", "0"}},
	{columnType{"int4", 23, 0}, []string{"2147483647"}},
	{columnType{"int8", 20, 0}, []string{"9223372036854775807", "-9223372036854775808"}},
	{columnType{"oid", 26, 0}, []string{"4294967295"}},
	{columnType{"float4", 700, 0}, []string{"0.1", "0.100000001", "1e+06", "1000000", "123456", "1.17549e-38", "3.4028235e+38", "16777216", "1.6777216e+07", "-0", "NaN", "Infinity", "-Infinity"}},
	{columnType{"float8", 701, 0}, []string{"0.1", "0.10000000000000001", "1e+15", "1000000000000000", "100000000000000", "10000000000000000", "1e-05", "1.0000000000000001e-05", "0.0001", "4.9406564584124654e-324", "5e-324", "1.7976931348623157e+308", "123456789.12345679", "-2.5", "NaN", "-Infinity"}},
	{columnType{"numeric", 1700, 0}, []string{"19.90", "1.100", "-0.00000000000000000001", "123456789012345678901234567890.5", "NaN", "Infinity"}},
	{columnType{"money", 790, 0}, []string{"$1,234.50", "-$0.05", "$92,233,720,368,547,758.07"}},
	{columnType{"timestamptz", 1184, 0}, []string{"2026-01-01 00:00:00.123456+00", "2026-01-01 00:00:00+00", "0001-01-01 00:00:00+00", "9999-12-31 23:59:59.5+00", "infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "20000-01-01 00:00:00+00"}},
	{columnType{"timestamp", 1114, 0}, []string{"2026-01-01 00:00:00.5", "infinity", "0044-03-15 12:00:00 BC", "20000-01-01 00:00:00"}},
	{columnType{"date", 1082, 0}, []string{"2026-01-01", "0044-03-15 BC", "20000-01-01", "infinity"}},
	{columnType{"time", 1083, 0}, []string{"23:59:59.999999", "24:00:00"}},
	{columnType{"timetz", 1266, 0}, []string{"12:00:00+05:30"}},
	{columnType{"interval", 1186, 0}, []string{"P1Y2M3DT4H5M6.789S", "PT0S", "P-1D"}},
	{columnType{"json", 114, 0}, []string{` {"b" : 1,  "a":[1,2.50]} `, "null", `"text"`, "1e400", "{\n\t\"k\": \"}\\\"{\"}"}},
	{columnType{"jsonb", 3802, 0}, []string{`{"a": 1, "b": [true, null, "x"]}`, "[]"}},
	{columnType{"bytea", 17, 0}, []string{`\x`, `\x00`, `\xdeadbeef`, `\x` + strings.Repeat("ff", 400)}},
	{columnType{"text", 25, 0}, []string{"", "plain", `quote " backslash \ slash /`, "\b\f\n\r\t\x01\x1f\x7f", "\u2028\u2029é日本🚀", "<a href='x'>&"}},
	{columnType{"bpchar", 1042, 0}, []string{"EUR", "a  "}},
	{columnType{"uuid", 2950, 0}, []string{"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}},
	{columnType{"inet", 869, 0}, []string{"192.168.0.0/24"}},
	{columnType{"int4range", 3904, 0}, []string{"[1,10)", "empty"}},
	{columnType{"bit", 1560, 0}, []string{"0101"}},
	{columnType{"tsvector", 3614, 0}, []string{"'a':1 'b':2"}},
	{columnType{"point", 600, 0}, []string{"(1,2)"}},
	{columnType{"int2vector", 22, 0}, []string{"1 2 3"}},
	{columnType{"composite", 16400, 0}, []string{`(1,"a ""b""",)`}},
	{columnType{"int4[]", 1007, 23}, []string{"{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:2]={1,2,3}", "[1:1][-2:-1][3:5]={{{1,2,3},{4,5,6}}}"}},
	{columnType{"text[]", 1009, 25}, []string{`{a,"b c","d,e","f\"g","h\\i",NULL,"NULL","","{}"}`, "{\"line\nbreak\"}"}},
	{columnType{"bool[]", 1000, 16}, []string{"{t,f,NULL}"}},
	{columnType{"numeric[]", 1231, 1700}, []string{"{1.50,NULL,NaN}"}},
	{columnType{"float8[]", 1022, 701}, []string{"{0.10000000000000001,NaN}"}},
	{columnType{"timestamptz[]", 1185, 1184}, []string{`{"2026-01-01 00:00:00+00",infinity}`}},
	{columnType{"jsonb[]", 3807, 3802}, []string{`{"{\"a\": 1}","[1, 2]",NULL,"null"}`}},
	{columnType{"bytea[]", 1001, 17}, []string{`{"\\xdead","\\x"}`}},
	{columnType{"box[]", 1020, 603}, []string{"{(1,1),(0,0);(2,2),(1,1)}"}},
	{columnType{"money[]", 791, 790}, []string{`{$1.00,"$1,000.00"}`}},
}

func TestValues(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	for _, tt := range valueCases {
		for _, text := range tt.texts {
			got, err := encodeOne(t, tt.columnType, "number", text)
			if err != nil {
				t.Errorf("%s %q: %v", tt.name, text, err)
				continue
			}
			if !json.Valid(got) {
				t.Errorf("%s %q: got %s, which is no JSON", tt.name, text, got)
			}
			fmt.Fprintf(&b, "%-14s %-40q %s\n", tt.name, text, got)
		}
	}
	golden(t, "values.golden", b.Bytes())
}

func TestInt64Text(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		columnType
		text, want string
	}{
		{columnType{"int8", 20, 0}, "9223372036854775807", `"9223372036854775807"`},
		{columnType{"int8[]", 1016, 20}, "{1,NULL}", `["1",null]`},
		{columnType{"int4", 23, 0}, "7", "7"},
	} {
		got, err := encodeOne(t, tt.columnType, "string", tt.text)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s %q: got %s, %v, want %s", tt.name, tt.text, got, err, tt.want)
		}
	}
}

func TestValuesRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		columnType
		text, want string
	}{
		{columnType{"bool", 16, 0}, "true", "no boolean"},
		{columnType{"int4", 23, 0}, "01", "no integer"},
		{columnType{"int4", 23, 0}, "-", "no integer"},
		{columnType{"int4", 23, 0}, "1 ", "no integer"},
		{columnType{"float8", 701, 0}, "1.", "no floating-point number"},
		{columnType{"float8", 701, 0}, ".5", "no floating-point number"},
		{columnType{"float8", 701, 0}, "0x10", "no floating-point number"},
		{columnType{"float8", 701, 0}, "1e", "no floating-point number"},
		{columnType{"money", 790, 0}, "1.234,50 €", "lc_monetary"},
		{columnType{"money", 790, 0}, "$", "no digits"},
		{columnType{"timestamptz", 1184, 0}, "2026-01-01 02:00:00+02", "TimeZone=UTC"},
		{columnType{"timestamptz", 1184, 0}, "0044-03-15 12:00:00+02 BC", "TimeZone=UTC"},
		{columnType{"json", 114, 0}, "", "empty"},
		{columnType{"json", 114, 0}, "\"\xff\"", "not UTF-8"},
		{columnType{"text", 25, 0}, "caf\xe9", "not UTF-8"},
		{columnType{"bytea", 17, 0}, "abc", "bytea_output"},
		{columnType{"bytea", 17, 0}, `\xabc`, "no bytea"},
		{columnType{"int4[]", 1007, 23}, "", "no array"},
		{columnType{"int4[]", 1007, 23}, "{1,2", "no array"},
		{columnType{"int4[]", 1007, 23}, "{1,,2}", "no array"},
		{columnType{"int4[]", 1007, 23}, "{1}{2}", "no array"},
		{columnType{"int4[]", 1007, 23}, "{1}x", "no array"},
		{columnType{"int4[]", 1007, 23}, "[0:1]", "no array"},
		{columnType{"text[]", 1009, 25}, `{"a`, "no array"},
		{columnType{"text[]", 1009, 25}, `{"a\`, "no array"},
		{columnType{"int4[]", 1007, 23}, "{{{{{{{1}}}}}}}", "no array"},
	} {
		got, err := encodeOne(t, tt.columnType, "number", tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %q: got %s, %v, want an error with %q", tt.name, tt.text, got, err, tt.want)
			continue
		}
		if !strings.HasPrefix(err.Error(), "0/10 change 1: table public.v: field \"v\": ") {
			t.Errorf("%s %q: got error %q, which does not name position, table and column", tt.name, tt.text, err)
		}
	}
}

// encodeOne inserts a row with one value and returns the value's JSON.
func encodeOne(tb testing.TB, typ columnType, int64Form, text string) ([]byte, error) {
	tb.Helper()
	m := mustMapping(tb, "int64: "+int64Form+"\ntables: [{table: v, aggregate: V, key: [id]}]")
	column := capture.Column{Name: "v", OID: typ.base, Base: typ.base, Elem: typ.elem}
	if typ.name == "box[]" {
		column.Delim = ';'
	}
	rel := &capture.Relation{Schema: "public", Name: "v", Columns: []capture.Column{oneColumn("id", oidInt4, true), column}}
	var out transform.Output
	err := transform.New(m, identity).Apply(&out, insertion(rel, at(0x10, 1), "1", text), newMemory())
	if err != nil {
		return nil, err
	}
	image := out.Events[0].State
	return bytes.TrimSuffix(bytes.TrimPrefix(image, []byte(`{"id":1,"v":`)), []byte("}")), nil
}

func FuzzArray(f *testing.F) {
	for _, tt := range valueCases {
		if tt.elem != 0 {
			for _, text := range tt.texts {
				f.Add(text)
			}
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, typ := range []columnType{{"text[]", 1009, 25}, {"int4[]", 1007, 23}, {"box[]", 1020, 603}} {
			got, err := encodeOne(t, typ, "number", text)
			if err == nil && (!json.Valid(got) || got[0] != '[' && text != null) {
				t.Errorf("%s %q: got %s, which is no JSON array", typ.name, text, got)
			}
		}
	})
}
