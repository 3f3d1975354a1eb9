package capture

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"backstory/internal/testenv"
)

// convertFunction converts bytes as the server does; '-' is for those it can't.
const convertFunction = `CREATE FUNCTION converted(b bytea, e name) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN RETURN encode(convert_to(convert_from(b, e), 'UTF8'), 'hex'); EXCEPTION WHEN OTHERS THEN RETURN '-'; END $$`

// Each character of each encoding is the one that Postgres makes of it, and what is
// none there is none here, on the oldest server and on the newest.
func TestCharsetsConvertAsPostgresDoes(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"10", "15", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			pg := testenv.Postgres(t, testenv.PGVersion(version))
			dsn := pg.Database(t)
			pg.Exec(t, dsn, convertFunction)
			conn, err := pgx.Connect(t.Context(), dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())
			const (
				bytes1 = `SELECT decode(to_hex(i), 'hex') FROM generate_series(128, 255) i`
				bytes2 = `SELECT decode(to_hex(i * 256 + j), 'hex') FROM generate_series(128, 255) i, generate_series(128, 255) j WHERE i <> 143 OR $1::name <> 'EUC_JP'`
				bytes3 = `SELECT decode('8f' || to_hex(i * 256 + j), 'hex') FROM generate_series(128, 255) i, generate_series(128, 255) j`
			)
			for name := range singleByte {
				compareCharset(t, conn, name, bytes1, 60)
			}
			compareCharset(t, conn, "EUC_JP", bytes2, 7000)
			compareCharset(t, conn, "EUC_JP", bytes3, 6000)
			compareCharset(t, conn, "EUC_KR", bytes2, 8000)
			compareCharset(t, conn, "EUC_CN", bytes2, 7000)
		})
	}
}

// compareCharset compares the texts that a query makes; at least so many are to be
// characters.
func compareCharset(t *testing.T, conn *pgx.Conn, name, texts string, least int) {
	t.Helper()
	c, known := charsetOf(name)
	if !known || c == nil {
		t.Fatalf("%s is not known", name)
	}
	rows, err := conn.Query(t.Context(), `SELECT b, converted(b, $1::name) FROM (`+texts+`) x (b) WHERE $1::name IS NOT NULL`, name)
	if err != nil {
		t.Fatal(err)
	}
	defined := 0
	var text []byte
	var want string
	_, err = pgx.ForEachRow(rows, []any{&text, &want}, func() error {
		got := "-"
		if utf, err := c.appendUTF8(nil, text, false); err == nil {
			got = hex.EncodeToString(utf)
			defined++
			if back, err := c.encode(string(utf)); err != nil || len(back) > len(text) {
				t.Errorf("%s: %X is %s, which is encoded as %X: %v", name, text, utf, back, err)
			}
		}
		if got != want {
			t.Errorf("%s: %X is %s, for the server %s", name, text, got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if defined < least {
		t.Errorf("%s: only %d characters", name, defined)
	}
}

// What is no character has a place and its bytes, or becomes one U+FFFD; what
// stands around it stays.
func TestUndecodableText(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text, bytes, replaced string
		at                          int
	}{
		{"WIN1252", "a\x81b", "\x81", "a\uFFFDb", 1},
		{"WIN1252", "\xe4\x8d\x8f\xfc", "\x8d", "ä\uFFFD\uFFFDü", 1},
		{"LATIN3", "\xa5", "\xa5", "\uFFFD", 0},
		{"EUC_JP", "\xa4\xa2\xff\xffx", "\xff\xff", "あ\uFFFDx", 2},
		{"EUC_JP", "x\xa4", "\xa4", "x\uFFFD", 1},
		{"EUC_JP", "\x8f\xa4y", "\x8f\xa4", "\uFFFDy", 0},
		{"EUC_KR", "\xc9\xa1", "\xc9\xa1", "\uFFFD", 0},
		{"SQL_ASCII", "ü\xfc\xc3", "\xfc", "ü\uFFFD\uFFFD", 2},
		{"SQL_ASCII", "\xed\xa0\x80", "\xed", "\uFFFD\uFFFD\uFFFD", 0},
	} {
		c, _ := charsetOf(tt.name)
		var bad *errUndecodable
		if _, err := c.appendUTF8(nil, []byte(tt.text), false); !errors.As(err, &bad) || bad.at != tt.at || string(bad.bytes) != tt.bytes {
			t.Errorf("%s, %x: got %v, want %X at byte %d", tt.name, tt.text, err, tt.bytes, tt.at)
		}
		got, err := c.appendUTF8([]byte("<"), []byte(tt.text), true)
		if err != nil || string(got) != "<"+tt.replaced || !utf8.Valid(got) {
			t.Errorf("%s, %x: replaced it is %q (%v), want %q", tt.name, tt.text, got, err, tt.replaced)
		}
	}
	for _, name := range []string{"EUC_TW", "EUC_JIS_2004", "MULE_INTERNAL", "JOHAB", ""} {
		if c, known := charsetOf(name); known || c != nil {
			t.Errorf("%s is converted here", name)
		}
	}
	if c, known := charsetOf("UTF8"); !known || c != nil {
		t.Error("UTF8 is converted")
	}
}

func FuzzCharset(f *testing.F) {
	f.Add([]byte("a\x8f\xa4"), "EUC_JP")
	f.Add([]byte("\x81"), "WIN1252")
	f.Fuzz(func(t *testing.T, text []byte, name string) {
		c, known := charsetOf(name)
		if !known || c == nil {
			return
		}
		replaced, err := c.appendUTF8(nil, text, true)
		if err != nil || !utf8.Valid(replaced) {
			t.Errorf("%q: %v", replaced, err)
		}
		strict, err := c.appendUTF8(nil, text, false)
		if err == nil && !bytes.Equal(strict, replaced) {
			t.Errorf("%q and %q", strict, replaced)
		}
		if isASCII(text) && !bytes.Equal(text, strict) {
			t.Errorf("ASCII became %q", strict)
		}
	})
}
