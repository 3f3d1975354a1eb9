package screen

import (
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// Style says how an output shows text.
type Style struct {
	Color bool
	Width int // columns of the terminal, to cut long lines at; 0: never cut
}

// StyleOf returns what suits f: colour and a width only on a terminal, colour
// only where NO_COLOR is unset and TERM is not dumb.
func StyleOf(f *os.File) Style {
	fd := int(f.Fd())
	if !term.IsTerminal(fd) {
		return Style{}
	}
	width, _, err := term.GetSize(fd)
	if err != nil {
		width = 0
	}
	return Style{Color: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb", Width: width}
}

// Ink is a way to print a word.
type Ink string

// The inks: few, and readable on dark and light ground.
const (
	Plain  Ink = ""
	Bold   Ink = "1"
	Dim    Ink = "2"
	Red    Ink = "31"
	Green  Ink = "32"
	Yellow Ink = "33"
	Blue   Ink = "34"
	Cyan   Ink = "36"
)

// Paint returns text in ink, or as it is without colour.
func (s Style) Paint(ink Ink, text string) string {
	if !s.Color || ink == Plain || text == "" {
		return text
	}
	return "\x1b[" + string(ink) + "m" + text + "\x1b[0m"
}

// line collects words with their inks and the columns they take.
type line struct {
	style Style
	b     strings.Builder
	width int
	full  bool
}

// add appends text; what does not fit the terminal is replaced by an ellipsis.
func (l *line) add(ink Ink, text string) {
	if l.full {
		return
	}
	n := utf8.RuneCountInString(text)
	if l.style.Width > 0 && l.width+n > l.style.Width-1 {
		text, l.full = cut(text, max(l.style.Width-1-l.width, 0))+"…", true
	}
	l.width += n
	l.b.WriteString(l.style.Paint(ink, text))
}

// pad appends text and spaces up to a column width, and two more.
func (l *line) pad(ink Ink, text string, width int) {
	l.add(ink, text)
	l.add(Plain, strings.Repeat(" ", max(width-utf8.RuneCountInString(text), 0)+2))
}

func (l *line) String() string { return strings.TrimRight(l.b.String(), " ") }

// cut returns the first n runes.
func cut(text string, n int) string {
	for i := range text {
		if n == 0 {
			return text[:i]
		}
		n--
	}
	return text
}

// printable makes control characters visible, so that data cannot steer a
// terminal, and everything stays on one line.
func printable(text string) string {
	if !strings.ContainsFunc(text, unprintable) {
		return text
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r < 0x20:
			return '␀' + r // the picture of the control character
		case unprintable(r):
			return '�'
		}
		return r
	}, text)
}

func unprintable(r rune) bool {
	return r == utf8.RuneError || !unicode.IsPrint(r)
}
