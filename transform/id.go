package transform

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math"

	"backstory/capture"
)

const (
	sequenceLen = len("00000000015A2F30-1-0000000042-001")
	uuidLen     = len("00000000-0000-8000-8000-000000000000")
	upperHex    = "0123456789ABCDEF"
)

// AppendSequence appends a place as the ce_sequence header has it: LSN in hex,
// kind, index of the change, index of the event, each of fixed width, so that
// text sorts as places do: "00000000015A2F30-1-0000000042-001".
func AppendSequence(dst []byte, p Place) []byte {
	for shift := 60; shift >= 0; shift -= 4 {
		dst = append(dst, upperHex[uint64(p.Pos.LSN)>>shift&15])
	}
	dst = append(dst, '-', '0'+byte(p.Pos.Kind), '-')
	dst = appendDigits(dst, uint64(p.Pos.Index), 10)
	dst = append(dst, '-')
	return appendDigits(dst, uint64(p.Index), 3)
}

var errSequence = errors.New("sequence is not of the form 00000000015A2F30-1-0000000042-001")

// ParseSequence reads what AppendSequence wrote, and nothing else.
func ParseSequence(text []byte) (Place, error) {
	if len(text) != sequenceLen || text[16] != '-' || text[18] != '-' || text[29] != '-' {
		return Place{}, errSequence
	}
	var lsn uint64
	for _, c := range text[:16] {
		switch {
		case c >= '0' && c <= '9':
			lsn = lsn<<4 | uint64(c-'0')
		case c >= 'A' && c <= 'F':
			lsn = lsn<<4 | uint64(c-'A'+10)
		default:
			return Place{}, errSequence
		}
	}
	kind, okKind := parseDigits(text[17:18])
	change, okChange := parseDigits(text[19:29])
	event, okEvent := parseDigits(text[30:])
	if !okKind || !okChange || !okEvent || kind > uint64(capture.KindChange) || change > math.MaxUint32 {
		return Place{}, errSequence
	}
	pos := capture.Position{LSN: capture.LSN(lsn), Kind: capture.Kind(kind), Index: uint32(change)}
	return Place{Pos: pos, Index: uint16(event)}, nil
}

// NewEventID makes the id of an event. The same event has the same id at every
// redelivery; the identity keeps apart the events of two clusters, whose
// positions may be equal.
func NewEventID(id capture.Identity, aggregate string, key []byte, p Place) EventID {
	eventID, _ := hashID(idPrefix(id, aggregate), p, key)
	return eventID
}

// idPrefix is the part of an id's input that all events of an aggregate type
// have in common.
func idPrefix(id capture.Identity, aggregate string) []byte {
	b := binary.BigEndian.AppendUint64(nil, id.System)
	b = binary.BigEndian.AppendUint32(b, uint32(id.Timeline))
	b = binary.BigEndian.AppendUint32(b, uint32(len(id.Database)))
	b = append(b, id.Database...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(aggregate)))
	return append(b, aggregate...)
}

// hashID hashes prefix, place and key into a UUID of version 8. It appends them
// to the prefix and returns that buffer too, so that its room can be used again.
func hashID(prefix []byte, p Place, key []byte) (EventID, []byte) {
	b := binary.BigEndian.AppendUint64(prefix, uint64(p.Pos.LSN))
	b = append(b, byte(p.Pos.Kind))
	b = binary.BigEndian.AppendUint32(b, p.Pos.Index)
	b = binary.BigEndian.AppendUint16(b, p.Index)
	b = append(b, key...)
	sum := sha256.Sum256(b)
	id := EventID(sum[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id, b
}

// Append appends the id as a UUID is written:
// "0190d1c5-6f3a-8b11-9c44-3d2f1a0b9e77".
func (id EventID) Append(dst []byte) []byte {
	var text [uuidLen]byte
	at := 0
	for i, c := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			text[at] = '-'
			at++
		}
		text[at], text[at+1] = lowerHex[c>>4], lowerHex[c&15]
		at += 2
	}
	return append(dst, text[:]...)
}

// String returns the text of Append.
func (id EventID) String() string { return string(id.Append(make([]byte, 0, uuidLen))) }
