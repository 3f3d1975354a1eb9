package capture

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/korean"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// charset is an encoding of a database, whose texts it turns into UTF-8 as the
// server itself would. A nil charset stands for texts that are UTF-8 already, and
// costs nothing.
//
// In every encoding that a database can have, a byte below 0x80 is ASCII wherever
// it stands. (Those of which this is not true, such as SJIS or GBK, serve clients
// only.) So what separates and escapes values is found before they are converted.
type charset struct {
	name   string   // as Postgres has it
	single []uint16 // characters by byte − 0x80; 0: undefined
	double []uint16 // by two bytes, see pair; nil: there are none
	triple []uint16 // by the two bytes behind single shift three
}

// asciiEnd is the first byte that is not ASCII.
const asciiEnd = 0x80

// singleShift3 introduces a character of three bytes in EUC_JP.
const singleShift3 = 0x8F

// pair is the place of two bytes in a table of characters.
func pair(a, b byte) int { return int(a&0x7F)<<7 | int(b&0x7F) }

// charsetOf returns the charset of a database whose encoding is called so. Known
// is false for those that only the server converts.
func charsetOf(name string) (c *charset, known bool) {
	switch name {
	case "UTF8":
		return nil, true
	case sqlASCII:
		return &charset{name: name}, true
	case "EUC_JP", "EUC_KR", "EUC_CN":
		return eucs[name](), true
	}
	e, ok := singleByte[name]
	if !ok {
		return nil, false
	}
	c = &charset{name: name, single: make([]uint16, asciiEnd)}
	for i := range c.single {
		c.single[i] = uint16(character(e, asciiEnd+byte(i))) //nolint:gosec // all are in the basic plane
	}
	c.amend()
	return c, true
}

// takeCharset has the server send texts as they are, if their encoding is one that
// is converted here: so a text that can't be converted has a place and a name, and
// one that nobody wants is no matter. Others are left to the server; the charset is
// nil then.
func takeCharset(ctx context.Context, conn *pgconn.PgConn) (*charset, error) {
	c, _ := charsetOf(conn.ParameterStatus("server_encoding"))
	if c == nil {
		return nil, nil
	}
	if _, err := conn.Exec(ctx, "SET client_encoding = "+quoteLiteral(c.name)).ReadAll(); err != nil {
		return nil, stepError(ctx, "set client_encoding", err)
	}
	return c, nil
}

// sqlASCII is the encoding of a database that does not know what its bytes mean.
// They are taken for UTF-8.
const sqlASCII = "SQL_ASCII"

// singleByte has the encodings of one byte a character by their names in Postgres.
var singleByte = map[string]encoding.Encoding{
	"LATIN1": charmap.ISO8859_1, "LATIN2": charmap.ISO8859_2, "LATIN3": charmap.ISO8859_3, "LATIN4": charmap.ISO8859_4,
	"LATIN5": charmap.ISO8859_9, "LATIN6": charmap.ISO8859_10, "LATIN7": charmap.ISO8859_13, "LATIN8": charmap.ISO8859_14,
	"LATIN9": charmap.ISO8859_15, "LATIN10": charmap.ISO8859_16,
	"ISO_8859_5": charmap.ISO8859_5, "ISO_8859_6": charmap.ISO8859_6, "ISO_8859_7": charmap.ISO8859_7, "ISO_8859_8": charmap.ISO8859_8,
	"WIN866": charmap.CodePage866, "WIN874": charmap.Windows874, "WIN1250": charmap.Windows1250, "WIN1251": charmap.Windows1251,
	"WIN1252": charmap.Windows1252, "WIN1253": charmap.Windows1253, "WIN1254": charmap.Windows1254, "WIN1255": charmap.Windows1255,
	"WIN1256": charmap.Windows1256, "WIN1257": charmap.Windows1257, "WIN1258": charmap.Windows1258,
	"KOI8R": charmap.KOI8R, "KOI8U": charmap.KOI8U,
}

// amend brings a table of single bytes in line with what Postgres does
// (TestCharsetsConvertAsPostgresDoes compares them all).
func (c *charset) amend() {
	switch c.name {
	case "LATIN2", "LATIN3", "LATIN4", "LATIN6", "LATIN7", "LATIN8", "LATIN9", "LATIN10",
		"ISO_8859_5", "ISO_8859_6", "ISO_8859_7", "ISO_8859_8":
		for i := range uint16(0x20) { // the control characters, as in LATIN1
			c.single[i] = asciiEnd + i
		}
	case "WIN1255":
		c.single[0xCA-asciiEnd] = 0
	case "KOI8U":
		c.single[0xAE-asciiEnd], c.single[0xBE-asciiEnd] = '\u255D', '\u256C'
	}
}

// eucs are the encodings of several bytes a character. Their tables are made when
// the first database has one.
var eucs = map[string]func() *charset{
	"EUC_JP": sync.OnceValue(eucJP),
	"EUC_KR": sync.OnceValue(eucKR),
	"EUC_CN": sync.OnceValue(eucCN),
}

// euc makes a table of the characters that have two bytes from 0xA1 to 0xFE.
func euc(name string, e encoding.Encoding) *charset {
	c := &charset{name: name, double: make([]uint16, asciiEnd*asciiEnd)}
	c.fill(c.double, e, 0xA1)
	return c
}

// fill enters the characters whose first byte is at least from and whose last two
// are at most 0xFE.
func (c *charset) fill(table []uint16, e encoding.Encoding, from byte, before ...byte) {
	for a := from; a <= 0xFE; a++ {
		for b := byte(0xA1); b <= 0xFE; b++ {
			table[pair(a, b)] = uint16(character(e, append(before[:len(before):len(before)], a, b)...)) //nolint:gosec // all are in the basic plane
		}
	}
}

// eucJP knows the extensions of IBM where Postgres has them: behind single shift
// three, and not in the rows 89 to 92 that NEC had chosen.
func eucJP() *charset {
	c := euc("EUC_JP", japanese.EUCJP)
	for a := byte(0xF9); a <= 0xFC; a++ {
		for b := byte(0xA1); b <= 0xFE; b++ {
			c.double[pair(a, b)] = 0
		}
	}
	for b := byte(0xA1); b <= 0xDF; b++ {
		c.double[pair(0x8E, b)] = uint16(character(japanese.EUCJP, 0x8E, b)) //nolint:gosec // halfwidth katakana
	}
	c.triple = make([]uint16, asciiEnd*asciiEnd)
	c.fill(c.triple, japanese.EUCJP, 0xA1, singleShift3)
	c.triple[pair(0xA2, 0xB7)], c.triple[pair(0xA2, 0xC3)] = 0, '\uFFE4'
	a, b := byte(0xF3), byte(0xF3)
	for _, r := range ibmExtensions {
		c.triple[pair(a, b)] = uint16(r) //nolint:gosec // all are in the basic plane
		if b++; b > 0xFE {
			a, b = a+1, 0xA1
		}
	}
	return c
}

// ibmExtensions are the characters from 8FF3F3 to 8FF4FE, in order.
const ibmExtensions = "" +
	"\u2170\u2171\u2172\u2173\u2174\u2175\u2176\u2177\u2178\u2179\u2160\u2161\u2162\u2163\u2164\u2165" +
	"\u2166\u2167\u2168\u2169\uff07\uff02\u3231\u2116\u2121\u70bb\u4efc\u50f4\u51ec\u5307\u5324\ufa0e" +
	"\u548a\u5759\ufa0f\ufa10\u589e\u5bec\u5cf5\u5d53\ufa11\u5fb7\u6085\u6120\u654e\u663b\u6665\ufa12" +
	"\uf929\u6801\ufa13\ufa14\u6a6b\u6ae2\u6df8\u6df2\u7028\ufa15\ufa16\u7501\u7682\u769e\ufa17\u7930" +
	"\ufa18\ufa19\ufa1a\ufa1b\u7ae7\ufa1c\ufa1d\u7da0\u7dd6\ufa1e\u8362\ufa1f\u85b0\ufa20\ufa21\u8807" +
	"\ufa22\u8b7f\u8cf4\u8d76\ufa23\ufa24\ufa25\u90de\ufa26\u9115\ufa27\ufa28\u9592\uf9dc\ufa29\u973b" +
	"\u974d\u9751\ufa2a\ufa2b\ufa2c\u999e\u9ad9\u9b72\ufa2d\u9ed1"

func eucKR() *charset {
	c := euc("EUC_KR", korean.EUCKR)
	c.double[pair(0xA2, 0xE8)] = '\u327E'
	return c
}

// eucCN is GB 2312, of which the encoding here is a superset.
func eucCN() *charset {
	c := euc("EUC_CN", simplifiedchinese.GBK)
	c.double[pair(0xA1, 0xA4)], c.double[pair(0xA1, 0xAA)] = '\u30FB', '\u2015'
	for _, added := range [][3]byte{
		{0xA2, 0xA1, 0xAA}, {0xA2, 0xE3, 0xE3}, {0xA6, 0xE0, 0xF5}, {0xA8, 0xBB, 0xC0},
	} {
		for b := added[1]; b <= added[2]; b++ {
			c.double[pair(added[0], b)] = 0
		}
	}
	return c
}

// character is what the bytes stand for; 0 if it is no character.
func character(e encoding.Encoding, text ...byte) rune {
	decoded, err := e.NewDecoder().Bytes(text)
	r, size := utf8.DecodeRune(decoded)
	if err != nil || r == utf8.RuneError || size != len(decoded) {
		return 0
	}
	return r
}

// errUndecodable says which bytes are no character of the database's encoding.
type errUndecodable struct {
	encoding string
	bytes    []byte
	at       int // from 0, in bytes
}

func (e *errUndecodable) Error() string {
	if e.encoding == sqlASCII {
		return fmt.Sprintf("byte %d, %X, is not UTF-8", e.at+1, e.bytes)
	}
	return fmt.Sprintf("byte %d, %X, is no character of %s", e.at+1, e.bytes, e.encoding)
}

// appendUTF8 appends a text in UTF-8. The first bytes that are no character are an
// *errUndecodable, or with replace become U+FFFD, one for each character that
// their encoding would have there.
func (c *charset) appendUTF8(dst, text []byte, replace bool) ([]byte, error) {
	for at := 0; at < len(text); {
		r, size := rune(text[at]), 1
		if r >= asciiEnd {
			r, size = c.next(text[at:])
		}
		if r == 0 && text[at] != 0 {
			if !replace {
				return dst, &errUndecodable{c.name, text[at : at+size], at}
			}
			r = utf8.RuneError
		}
		dst = utf8.AppendRune(dst, r)
		at += size
	}
	return dst, nil
}

// next decodes the character that text begins with, which is not ASCII; 0 if it is
// none. The size is at least 1.
func (c *charset) next(text []byte) (r rune, size int) {
	switch {
	case c.single != nil:
		return rune(c.single[text[0]-asciiEnd]), 1
	case c.double == nil:
		if r, size = utf8.DecodeRune(text); r == utf8.RuneError && size == 1 {
			return 0, 1
		}
		return r, size
	}
	table, size := c.double, 2
	if c.triple != nil && text[0] == singleShift3 {
		table, size = c.triple, 3
	}
	for i := 1; i < size; i++ {
		if i == len(text) || text[i] < asciiEnd {
			return 0, i
		}
	}
	return rune(table[pair(text[size-2], text[size-1])]), size
}

// utf8Of is a text in UTF-8, in which what is no character is U+FFFD: of names and of what
// the server says.
func (c *charset) utf8Of(text string) string {
	if c == nil || isASCII([]byte(text)) {
		return text
	}
	converted, _ := c.appendUTF8(nil, []byte(text), true) // with replace there is no error
	return string(converted)
}

// encode is the text in the encoding of the database.
func (c *charset) encode(text string) (string, error) {
	if c == nil || c.name == sqlASCII {
		return text, nil
	}
	var out []byte
	for _, r := range text {
		b := c.code(r)
		if b == nil {
			return "", fmt.Errorf("%q has %q, which %s does not have", text, r, c.name)
		}
		out = append(out, b...)
	}
	return string(out), nil
}

// code is a character in the encoding of the database; nil if it has none.
func (c *charset) code(r rune) []byte {
	if r < asciiEnd {
		return []byte{byte(r)}
	}
	for i, known := range c.single {
		if rune(known) == r {
			return []byte{asciiEnd + byte(i)} //nolint:gosec // the table has 128 places
		}
	}
	for i, known := range c.double {
		if rune(known) == r {
			return []byte{asciiEnd | byte(i>>7), asciiEnd | byte(i)} //nolint:gosec // the table has 128 × 128 places
		}
	}
	for i, known := range c.triple {
		if rune(known) == r {
			return []byte{singleShift3, asciiEnd | byte(i>>7), asciiEnd | byte(i)} //nolint:gosec // as before
		}
	}
	return nil
}

// explain is an error of a session whose texts are in the charset.
func (c *charset) explain(err error) error {
	var pg *pgconn.PgError
	if c != nil && errors.As(err, &pg) {
		pg.Message, pg.Detail, pg.Hint = c.utf8Of(pg.Message), c.utf8Of(pg.Detail), c.utf8Of(pg.Hint)
	}
	return err
}

// isASCII reports whether all bytes are.
func isASCII(text []byte) bool {
	for len(text) >= 8 {
		if (text[0]|text[1]|text[2]|text[3]|text[4]|text[5]|text[6]|text[7])&asciiEnd != 0 {
			return false
		}
		text = text[8:]
	}
	for _, c := range text {
		if c >= asciiEnd {
			return false
		}
	}
	return true
}
