package transform_test

import (
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"backstory/capture"
	"backstory/internal/testenv"
	"backstory/transform"

	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// edge is a column type with values as SQL has them and as JSON must have them.
type edge struct {
	typ    string
	since  int // Postgres version
	values [][2]string
}

// edges are the types that every server has, and some of a database's own, at
// the ends of their ranges.
var edges = []edge{
	{"bool", 0, [][2]string{{"true", "true"}, {"false", "false"}}},
	{"int2", 0, [][2]string{{"-32768", "-32768"}, {"32767", "32767"}}},
	{"int4", 0, [][2]string{{"-2147483648", "-2147483648"}, {"2147483647", "2147483647"}, {"0", "0"}}},
	{"int8", 0, [][2]string{{"-9223372036854775808", "-9223372036854775808"}, {"9223372036854775807", "9223372036854775807"}}},
	{"oid", 0, [][2]string{{"0", "0"}, {"4294967295", "4294967295"}}},
	{"float4", 0, [][2]string{
		{"NaN", `"NaN"`}, {"Infinity", `"Infinity"`}, {"-Infinity", `"-Infinity"`}, {"-0", "-0"}, {"0.1", "0.1"},
		{"3.4028235e38", "3.4028235e+38"}, {"1.17549435e-38", "1.1754944e-38"}, {"1e-45", "1e-45"},
		{"16777216", "1.6777216e+07"}, {"999999", "999999"}, {"1000000", "1e+06"}, {"0.0001", "0.0001"}, {"0.00001", "1e-05"},
	}},
	{"float8", 0, [][2]string{
		{"NaN", `"NaN"`}, {"Infinity", `"Infinity"`}, {"-Infinity", `"-Infinity"`}, {"-0", "-0"}, {"0.1", "0.1"},
		{"1.7976931348623157e308", "1.7976931348623157e+308"}, {"4.9406564584124654e-324", "5e-324"},
		{"9007199254740993", "9.007199254740992e+15"}, {"999999999999999", "999999999999999"}, {"1e15", "1e+15"},
		{"0.30000000000000004", "0.30000000000000004"}, {"0.0001", "0.0001"}, {"1e-5", "1e-05"},
	}},
	{"numeric", 0, [][2]string{
		{"19.90", `"19.90"`}, {"1.100", `"1.100"`}, {"-0.00", `"0.00"`}, {"NaN", `"NaN"`},
		{"0." + strings.Repeat("0", 999) + "1", `"0.` + strings.Repeat("0", 999) + `1"`},
		{strings.Repeat("9", 2000), `"` + strings.Repeat("9", 2000) + `"`},
	}},
	{"numeric", 14, [][2]string{{"Infinity", `"Infinity"`}, {"-Infinity", `"-Infinity"`}}},
	{"numeric(12,2)", 0, [][2]string{{"0", `"0.00"`}, {"-1234567890.12", `"-1234567890.12"`}}},
	{"money", 0, [][2]string{
		{"92233720368547758.07", `"92233720368547758.07"`}, {"-92233720368547758.08", `"-92233720368547758.08"`},
		{"-0.05", `"-0.05"`}, {"1234.5", `"1234.50"`},
	}},
	{"text", 0, [][2]string{
		{"", `""`}, {"a\"b\\c/d", `"a\"b\\c/d"`}, {"\b\f\n\r\t\x01\x1f\x7f", "\"\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\""},
		{"é日本🚀\u2028", "\"é日本🚀\u2028\""}, {"null", `"null"`}, {strings.Repeat("x", 5000), `"` + strings.Repeat("x", 5000) + `"`},
	}},
	{"char(5)", 0, [][2]string{{"a", `"a    "`}}},
	{"varchar(5)", 0, [][2]string{{"a ", `"a "`}}},
	{`"char"`, 0, [][2]string{{"x", `"x"`}, {"", `""`}}},
	{"name", 0, [][2]string{{"A name", `"A name"`}}},
	{"bytea", 0, [][2]string{{`\x`, `""`}, {`\x00`, `"AA=="`}, {`\x00ff10`, `"AP8Q"`}, {`\xfbff`, `"+/8="`}}},
	{"date", 0, [][2]string{
		{"2026-01-31", `"2026-01-31"`}, {"infinity", `"infinity"`}, {"-infinity", `"-infinity"`},
		{"4713-01-01 BC", `"4713-01-01 BC"`}, {"20000-01-01", `"20000-01-01"`}, {"5874897-12-31", `"5874897-12-31"`},
	}},
	{"time", 0, [][2]string{{"00:00", `"00:00:00"`}, {"24:00", `"24:00:00"`}, {"23:59:59.999999", `"23:59:59.999999"`}}},
	{"timetz", 0, [][2]string{
		{"12:00+05:30", `"12:00:00+05:30"`}, {"00:00:00+15:59:59", `"00:00:00+15:59:59"`}, {"24:00:00-15:59", `"24:00:00-15:59"`}, {"12:00Z", `"12:00:00+00"`},
	}},
	{"timestamp", 0, [][2]string{
		{"2026-01-31 00:00", `"2026-01-31T00:00:00"`}, {"2026-01-31 00:00:00.500", `"2026-01-31T00:00:00.5"`},
		{"9999-12-31 23:59:59.999999", `"9999-12-31T23:59:59.999999"`}, {"0001-01-01", `"0001-01-01T00:00:00"`},
		{"10000-01-01", `"10000-01-01 00:00:00"`}, {"294276-12-31 23:59:59.999999", `"294276-12-31 23:59:59.999999"`},
		{"4713-01-01 00:00:00 BC", `"4713-01-01 00:00:00 BC"`}, {"infinity", `"infinity"`}, {"-infinity", `"-infinity"`},
	}},
	{"timestamptz", 0, [][2]string{
		{"2026-01-31 05:30+05:30", `"2026-01-31T00:00:00Z"`}, {"2026-01-31 00:00:00.123456Z", `"2026-01-31T00:00:00.123456Z"`},
		{"9999-12-31 23:59:59.999999Z", `"9999-12-31T23:59:59.999999Z"`}, {"20000-01-01 00:00Z", `"20000-01-01 00:00:00+00"`},
		{"1883-11-18 00:00:00+00:53:28", `"1883-11-17T23:06:32Z"`}, {"0044-03-15 12:00:00Z BC", `"0044-03-15 12:00:00+00 BC"`},
		{"infinity", `"infinity"`}, {"-infinity", `"-infinity"`},
	}},
	{"interval", 0, [][2]string{
		{"1 year 2 mons 3 days 4 hours 5 mins 6.789 secs", `"P1Y2M3DT4H5M6.789S"`}, {"0", `"PT0S"`}, {"-1 day", `"P-1D"`},
		{"-00:00:00.5", `"PT-0.5S"`}, {"1 mon -1 day", `"P1M-1D"`}, {"178000000 years", `"P178000000Y"`}, {"25:00:00", `"PT25H"`},
	}},
	{"interval", 17, [][2]string{{"infinity", `"infinity"`}, {"-infinity", `"-infinity"`}}},
	{"json", 0, [][2]string{
		{` {"b" : 1,  "a":[1,2.50], "b":2} `, ` {"b" : 1,  "a":[1,2.50], "b":2} `}, {"null", "null"}, {"1e400", "1e400"},
		{`"\u00e9\/"`, `"\u00e9\/"`}, {"{\n\"k\":\"}\\\"{\"}", "{\n\"k\":\"}\\\"{\"}"},
	}},
	{"jsonb", 0, [][2]string{
		{`{"b":1,"a":[2.50,null]}`, `{"a": [2.50, null], "b": 1}`}, {"null", "null"}, {`"text"`, `"text"`}, {"1e30", "1" + strings.Repeat("0", 30)},
	}},
	{"uuid", 0, [][2]string{{"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", `"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"`}}},
	{"inet", 0, [][2]string{{"::1", `"::1"`}, {"10.0.0.1/8", `"10.0.0.1/8"`}}},
	{"cidr", 0, [][2]string{{"10.0.0.0/8", `"10.0.0.0/8"`}}},
	{"macaddr", 0, [][2]string{{"08-00-2b-01-02-03", `"08:00:2b:01:02:03"`}}},
	{"macaddr8", 0, [][2]string{{"08:00:2b:01:02:03:04:05", `"08:00:2b:01:02:03:04:05"`}}},
	{"bit(3)", 0, [][2]string{{"101", `"101"`}}},
	{"varbit", 0, [][2]string{{"", `""`}, {"0101", `"0101"`}}},
	{"point", 0, [][2]string{{"(1.5,-2)", `"(1.5,-2)"`}}},
	{"line", 0, [][2]string{{"{1,-1,0}", `"{1,-1,0}"`}}},
	{"lseg", 0, [][2]string{{"[(0,0),(1,1)]", `"[(0,0),(1,1)]"`}}},
	{"box", 0, [][2]string{{"(0,0),(1,1)", `"(1,1),(0,0)"`}}},
	{"path", 0, [][2]string{{"[(0,0),(1,1)]", `"[(0,0),(1,1)]"`}}},
	{"polygon", 0, [][2]string{{"((0,0),(1,1),(2,0))", `"((0,0),(1,1),(2,0))"`}}},
	{"circle", 0, [][2]string{{"<(0,0),2>", `"<(0,0),2>"`}}},
	{"tsvector", 0, [][2]string{{"a:1 'b c':2A", `"'a':1 'b c':2A"`}}},
	{"tsquery", 0, [][2]string{{"a & !b", `"'a' & !'b'"`}}},
	{"int4range", 0, [][2]string{{"[1,9]", `"[1,10)"`}, {"empty", `"empty"`}, {"(,)", `"(,)"`}}},
	{"numrange", 0, [][2]string{{"[1.10,2.0]", `"[1.10,2.0]"`}}},
	{"daterange", 0, [][2]string{{"[2026-01-01,infinity]", `"[2026-01-01,infinity]"`}}},
	{"tstzrange", 0, [][2]string{{"[2026-01-01 05:30+05:30,)", `"[\"2026-01-01 00:00:00+00\",)"`}}},
	{"int4multirange", 14, [][2]string{{"{[1,2],[5,6]}", `"{[1,3),[5,7)}"`}, {"{}", `"{}"`}}},
	{"pg_lsn", 0, [][2]string{{"16/B374D848", `"16/B374D848"`}}},
	{"xid", 0, [][2]string{{"4294967295", `"4294967295"`}}},
	{"xid8", 13, [][2]string{{"18446744073709551615", `"18446744073709551615"`}}},
	{"tid", 0, [][2]string{{"(0,1)", `"(0,1)"`}}},
	{"regclass", 0, [][2]string{{"pg_class", `"pg_class"`}}},
	{"regtype", 0, [][2]string{{"int8", `"bigint"`}}},
	{"int2vector", 0, [][2]string{{"1 2 3", `"1 2 3"`}}},
	{"oidvector", 0, [][2]string{{"1 4294967295", `"1 4294967295"`}}},
	{"jsonpath", 12, [][2]string{{"$.a", `"$.\"a\""`}}},

	{"int4[]", 0, [][2]string{
		{"{}", "[]"}, {"{1,NULL,-3}", "[1,null,-3]"}, {"{{1,2},{3,4}}", "[[1,2],[3,4]]"}, {"[0:2]={1,2,3}", "[1,2,3]"},
		{"[1:1][-2:-1][3:4]={{{1,2},{3,4}}}", "[[[1,2],[3,4]]]"}, {"{{{{{{7}}}}}}", "[[[[[[7]]]]]]"},
	}},
	{"text[]", 0, [][2]string{
		{`{a,"b c","d,e","f\"g","h\\i",NULL,"NULL","","{}",null}`, `["a","b c","d,e","f\"g","h\\i",null,"NULL","","{}",null]`},
		{"{\"line\nbreak\",é}", `["line\nbreak","é"]`},
	}},
	{"bool[]", 0, [][2]string{{"{t,f,NULL}", "[true,false,null]"}}},
	{"int8[]", 0, [][2]string{{"{9223372036854775807}", "[9223372036854775807]"}}},
	{"numeric[]", 0, [][2]string{{"{1.50,NULL,NaN}", `["1.50",null,"NaN"]`}}},
	{"float8[]", 0, [][2]string{{"{0.1,NaN,1e15,-Infinity}", `[0.1,"NaN",1e+15,"-Infinity"]`}}},
	{"float4[]", 0, [][2]string{{"{0.1,1e6}", `[0.1,1e+06]`}}},
	{"timestamptz[]", 0, [][2]string{{"{2026-01-01 05:30+05:30,infinity}", `["2026-01-01T00:00:00Z","infinity"]`}}},
	{"timestamp[]", 0, [][2]string{{"{2026-01-01,0044-03-15 12:00:00 BC}", `["2026-01-01T00:00:00","0044-03-15 12:00:00 BC"]`}}},
	{"date[]", 0, [][2]string{{"{2026-01-01,4713-01-01 BC}", `["2026-01-01","4713-01-01 BC"]`}}},
	{"interval[]", 0, [][2]string{{"{1 day,-1 mon}", `["P1D","P-1M"]`}}},
	{"json[]", 0, [][2]string{{`{"{\"a\" : 1}","[1, 2]",NULL,"null"}`, `[{"a" : 1},[1, 2],null,null]`}}},
	{"jsonb[]", 0, [][2]string{{`{"{\"a\":1}",NULL}`, `[{"a": 1},null]`}}},
	{"bytea[]", 0, [][2]string{{`{"\\x00ff10","\\x",NULL}`, `["AP8Q","",null]`}}},
	{"money[]", 0, [][2]string{{`{"1234.50",-0.05}`, `["1234.50","-0.05"]`}}},
	{"uuid[]", 0, [][2]string{{"{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}", `["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]`}}},
	{"char(3)[]", 0, [][2]string{{"{a,EUR}", `["a  ","EUR"]`}}},
	{"name[]", 0, [][2]string{{"{a,b}", `["a","b"]`}}},
	{"point[]", 0, [][2]string{{`{"(1,2)","(3,4)"}`, `["(1,2)","(3,4)"]`}}},
	{"box[]", 0, [][2]string{{"{(1,1),(0,0);(2,2),(1,1)}", `["(1,1),(0,0)","(2,2),(1,1)"]`}}},
	{"int4range[]", 0, [][2]string{{`{"[1,3)",empty}`, `["[1,3)","empty"]`}}},
	{"oid[]", 0, [][2]string{{"{4294967295}", "[4294967295]"}}},

	{"mood", 0, [][2]string{{"sad", `"sad"`}, {`so "so"`, `"so \"so\""`}}},
	{"shape[]", 0, [][2]string{{"{(1,1),(0,0):(2,2),(1,1)}", `["(1,1),(0,0)","(2,2),(1,1)"]`}}}, // as an extension's
	{"mood[]", 0, [][2]string{{`{sad,"so \"so\"",NULL}`, `["sad","so \"so\"",null]`}}},
	{"pair", 0, [][2]string{{`(1,"a ""b""")`, `"(1,\"a \"\"b\"\"\")"`}, {"(,)", `"(,)"`}}},
	{"pair[]", 0, [][2]string{{`{"(1,a)",NULL}`, `["(1,a)",null]`}}},
	{"tenths", 0, [][2]string{{"[0.5,1.5)", `"[0.5,1.5)"`}}},
	{"positive", 0, [][2]string{{"7", "7"}}},
	{"small_positive", 0, [][2]string{{"7", "7"}}},
	{"price", 0, [][2]string{{"7", `"7.00"`}}},
	{"tags", 0, [][2]string{{"{a,NULL}", `["a",null]`}}},
	{"positive[]", 11, [][2]string{{"{1,NULL}", "[1,null]"}}},
}

var edgeTypes = []string{
	`CREATE TYPE mood AS ENUM ('sad', 'so "so"')`, `CREATE TYPE pair AS (a int, b text)`,
	`CREATE TYPE tenths AS RANGE (subtype = float8)`, `CREATE DOMAIN positive AS int CHECK (VALUE > 0)`,
	`CREATE DOMAIN small_positive AS positive CHECK (VALUE < 9)`, `CREATE DOMAIN price AS numeric(12,2)`,
	`CREATE DOMAIN tags AS text[]`,
	`CREATE TYPE shape`, `CREATE FUNCTION shape_in(cstring) RETURNS shape AS 'box_in' LANGUAGE internal STRICT IMMUTABLE`,
	`CREATE FUNCTION shape_out(shape) RETURNS cstring AS 'box_out' LANGUAGE internal STRICT IMMUTABLE`,
	`CREATE TYPE shape (INPUT = shape_in, OUTPUT = shape_out, LIKE = box, DELIMITER = ':')`,
}

// foreignSettings would change the text of half of the values, if the sessions
// did not pin theirs.
var foreignSettings = []string{
	"TimeZone = 'Asia/Kolkata'", "DateStyle = 'SQL, DMY'", "IntervalStyle = 'postgres_verbose'",
	"bytea_output = 'escape'", "extra_float_digits = 0",
}

// Every type of column has the promised JSON at the edges of its range, whether
// its value comes with the stream or is read from the table, on the oldest
// server and on the newest.
func TestValuesOfPostgres(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"10", "14", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			major, err := strconv.Atoi(version)
			if err != nil {
				t.Fatal(err)
			}
			known := make([]edge, 0, len(edges))
			for _, e := range edges {
				if e.since <= major {
					known = append(known, e)
				}
			}
			pg := testenv.Postgres(t, testenv.PGVersion(version))
			streamed, read := edgeImages(t, pg, known)
			for i, image := range streamed {
				if diff := cmp.Diff(wantedImage(known, i), image); diff != "" {
					t.Errorf("row %d (-want +got):\n%s", i, diff)
				}
			}
			if diff := cmp.Diff(streamed, read); diff != "" {
				t.Errorf("the rows as read differ from those streamed (-streamed +read):\n%s", diff)
			}
		})
	}
}

// wantedImage is the image of the row with the i-th value of each type.
func wantedImage(edges []edge, i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"id":%d`, i)
	for n, e := range edges {
		value := "null"
		if i < len(e.values) {
			value = e.values[i][1]
		}
		fmt.Fprintf(&b, ",\"%s\":%s", columnOf(n, e), value)
	}
	return b.String() + "}"
}

func columnOf(n int, e edge) string {
	return fmt.Sprintf("c%d %s", n, strings.Trim(e.typ, `"`))
}

// edgeSQL makes the table with a column for each edge, and the statements that
// fill it: one for each row, the last row all NULL.
func edgeSQL(edges []edge) (create string, inserts []string) {
	columns, rows := "id int PRIMARY KEY", 0
	for n, e := range edges {
		columns += fmt.Sprintf(", %q %s", columnOf(n, e), e.typ)
		rows = max(rows, len(e.values)+1)
	}
	for i := range rows {
		values := strconv.Itoa(i)
		for _, e := range edges {
			value := "NULL"
			if i < len(e.values) {
				value = "'" + strings.ReplaceAll(e.values[i][0], "'", "''") + "'::" + e.typ
			}
			values += ", " + value
		}
		inserts = append(inserts, "INSERT INTO edges VALUES ("+values+")")
	}
	return "CREATE TABLE edges (" + columns + ")", inserts
}

// edgeImages fills the table and returns the images of its rows, in order, as
// made from the stream and as made from the table.
func edgeImages(t *testing.T, pg *testenv.PG, edges []edge) (streamed, read []string) {
	t.Helper()
	dsn := pg.Database(t)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	create, inserts := edgeSQL(edges)
	pg.Exec(t, dsn, append(edgeTypes, create)...)
	for _, setting := range foreignSettings {
		pg.Exec(t, dsn, "ALTER DATABASE "+name+" SET "+setting)
	}
	cfg := capture.DefaultConfig()
	cfg.DSN, cfg.Slot, cfg.Publication = dsn, name, name
	m := mustMapping(t, `tables: [{table: edges, aggregate: Edge}]`)
	db, err := capture.NewDatabase(cfg, m.Refs(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	prepared, err := db.Prepare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Bind(prepared.Tables); err != nil {
		t.Fatal(err)
	}
	pg.Exec(t, dsn, inserts...)
	tr := transform.New(m, identity)
	return streamImages(t, db, tr, len(inserts)), readImages(t, db, tr, prepared.Tables[0])
}

func streamImages(t *testing.T, db *capture.Database, tr *transform.Transformer, rows int) []string {
	t.Helper()
	stream, err := db.Open(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var images []string
	for len(images) < rows {
		batch, err := stream.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, imagesOf(t, batch.Changes, func(out *transform.Output, c *capture.Change) error {
			return tr.Apply(out, c, newMemory())
		})...)
	}
	return images
}

func readImages(t *testing.T, db *capture.Database, tr *transform.Transformer, table capture.TableInfo) []string {
	t.Helper()
	reader, err := db.OpenReader(t.Context(), table, capture.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	chunk, err := reader.Chunk(t.Context(), nil, 1000)
	if err != nil {
		t.Fatal(err)
	}
	return imagesOf(t, chunk.Changes, func(out *transform.Output, c *capture.Change) error {
		return tr.Row(out, c, newMemory(), false)
	})
}

// imagesOf returns the image of each change's only event.
func imagesOf(t *testing.T, changes []capture.Change, apply func(*transform.Output, *capture.Change) error) []string {
	t.Helper()
	var images []string
	for i := range changes {
		var out transform.Output
		if err := apply(&out, &changes[i]); err != nil {
			t.Fatal(err)
		}
		if len(out.Events) != 1 {
			t.Fatalf("change %d: got %d events, want 1", i, len(out.Events))
		}
		images = append(images, string(out.Events[0].State))
	}
	return images
}
