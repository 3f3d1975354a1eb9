package transform

import (
	"errors"
	"strconv"
)

const (
	microsPerSecond = 1_000_000
	secondsPerDay   = 86_400
	timeLen         = len("2026-01-01T00:00:00.000000Z")
)

// AppendTime appends microseconds since 1970-01-01 UTC as RFC 3339 in UTC with
// exactly six digits of fraction: "2026-01-01T00:00:00.123456Z". RFC 3339 ends
// with the year 9999; later years are written with the digits they have.
func AppendTime(dst []byte, micros int64) []byte {
	seconds, fraction := floorDiv(micros, microsPerSecond)
	days, second := floorDiv(seconds, secondsPerDay)
	year, month, day := civil(days)
	if year >= 0 && year <= 9999 {
		dst = appendDigits(dst, uint64(year), 4)
	} else {
		dst = strconv.AppendInt(dst, year, 10)
	}
	dst = append(dst, '-')
	dst = appendDigits(dst, uint64(month), 2)
	dst = append(dst, '-')
	dst = appendDigits(dst, uint64(day), 2)
	dst = append(dst, 'T')
	dst = appendDigits(dst, uint64(second/3600), 2)
	dst = append(dst, ':')
	dst = appendDigits(dst, uint64(second/60%60), 2)
	dst = append(dst, ':')
	dst = appendDigits(dst, uint64(second%60), 2)
	dst = append(dst, '.')
	dst = appendDigits(dst, uint64(fraction), 6)
	return append(dst, 'Z')
}

var errTime = errors.New("time is not of the form 2026-01-01T00:00:00.000000Z")

// ParseTime reads what AppendTime wrote of a year from 0 to 9999, and nothing
// else.
func ParseTime(text []byte) (int64, error) {
	if len(text) != timeLen || text[4] != '-' || text[7] != '-' || text[10] != 'T' ||
		text[13] != ':' || text[16] != ':' || text[19] != '.' || text[26] != 'Z' {
		return 0, errTime
	}
	var n [7]int64 // year, month, day, hour, minute, second, microsecond
	ends := [7]int{4, 7, 10, 13, 16, 19, 26}
	from := 0
	for i, end := range ends {
		v, ok := parseDigits(text[from:end])
		if !ok {
			return 0, errTime
		}
		n[i] = int64(v)
		from = end + 1
	}
	if n[3] > 23 || n[4] > 59 || n[5] > 59 {
		return 0, errTime
	}
	days := daysFrom(n[0], n[1], n[2])
	if y, m, d := civil(days); y != n[0] || m != n[1] || d != n[2] {
		return 0, errTime
	}
	return (days*secondsPerDay+n[3]*3600+n[4]*60+n[5])*microsPerSecond + n[6], nil
}

// civil turns days since 1970-01-01 into a date of the proleptic Gregorian
// calendar. Years are counted from March, so that the leap day is the last one
// of a year, and in eras of 400 years, which all have 146,097 days.
func civil(days int64) (year, month, day int64) {
	era, dayOfEra := floorDiv(days+719_468, 146_097)
	yearOfEra := (dayOfEra - dayOfEra/1460 + dayOfEra/36_524 - dayOfEra/146_096) / 365
	dayOfYear := dayOfEra - (365*yearOfEra + yearOfEra/4 - yearOfEra/100)
	marchMonth := (5*dayOfYear + 2) / 153
	day = dayOfYear - (153*marchMonth+2)/5 + 1
	month = marchMonth + 3
	year = yearOfEra + era*400
	if month > 12 {
		month -= 12
		year++
	}
	return year, month, day
}

// daysFrom is the inverse of civil; for a date that does not exist it returns
// some other day.
func daysFrom(year, month, day int64) int64 {
	if month <= 2 {
		year--
		month += 12
	}
	era, yearOfEra := floorDiv(year, 400)
	dayOfYear := (153*(month-3)+2)/5 + day - 1
	return era*146_097 + yearOfEra*365 + yearOfEra/4 - yearOfEra/100 + dayOfYear - 719_468
}

// floorDiv divides and rounds down; the rest is never negative. n is positive.
func floorDiv(v, n int64) (quotient, rest int64) {
	quotient, rest = v/n, v%n
	if rest < 0 {
		quotient--
		rest += n
	}
	return quotient, rest
}

// appendDigits appends v in decimal, padded with zeros to width.
func appendDigits(dst []byte, v uint64, width int) []byte {
	var b [20]byte
	i := len(b)
	for v > 0 || len(b)-i < width {
		i--
		b[i] = byte('0' + v%10)
		v /= 10
	}
	return append(dst, b[i:]...)
}

// parseDigits reads up to 18 decimal digits and nothing else.
func parseDigits(text []byte) (uint64, bool) {
	if len(text) == 0 || len(text) > 18 {
		return 0, false
	}
	var v uint64
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + uint64(c-'0')
	}
	return v, true
}
