package transform

import (
	"bytes"
	"errors"
	"fmt"
)

// Fold takes a record of either topic into the entry of its aggregate and
// reports whether it did: a record at or below the entry's place is passed over.
//
// A record of the latest topic replaces the image; without a value it deletes
// it. An event must have the version that follows the entry's, else Fold returns
// a *FoldError: its "new" members replace those of the image where they stand,
// those that the image does not have are appended in their order, and an event
// whose "new" is empty deletes the image. Apply makes images by the same rule,
// so the image of the state is the fold of the events, byte for byte.
//
// The new image lies in the record or behind dst, whose extension is returned
// too; so the entry must be stored before either is used again.
func Fold(e *Entry, s *Stored, dst []byte) (applied bool, buf []byte, err error) {
	if s.Place.Compare(e.Place) <= 0 {
		return false, dst, nil
	}
	next := Entry{Version: s.Version, Place: s.Place, XID: s.XID}
	if s.Topic == Latest {
		if s.Version <= e.Version {
			return false, dst, foldError(e, s, "it stands above the state and has no newer version")
		}
		next.Image = s.State
		*e = next
		return true, dst, nil
	}
	if s.Version != e.Version+1 {
		return false, dst, foldError(e, s, fmt.Sprintf("version %d is missing", e.Version+1))
	}
	data, err := ParseData(s.Data)
	if err != nil {
		return false, dst, foldError(e, s, err.Error())
	}
	if !e.Exists() && string(data.Old) != "{}" {
		return false, dst, foldError(e, s, "it changes an aggregate that does not exist")
	}
	next.Image, dst, err = foldImage(e.Image, data.New, dst)
	if err != nil {
		return false, dst, foldError(e, s, err.Error())
	}
	*e = next
	return true, dst, nil
}

func foldError(e *Entry, s *Stored, problem string) error {
	return &FoldError{Key: string(s.Key), Have: e.Version, Got: s.Version, Problem: problem}
}

// foldImage folds changed members, an object, into an image. The result lies in
// changed, or behind dst, which is returned too.
func foldImage(old, changed, dst []byte) (now, buf []byte, err error) {
	if string(changed) == "{}" {
		return nil, dst, nil
	}
	var room [2][64]member // most images fit; larger ones go to the heap
	news, err := image(room[1][:0]).parse(changed)
	if err != nil {
		return nil, dst, err
	}
	if old == nil {
		return changed, dst, nil
	}
	im, err := image(room[0][:0]).parse(old)
	if err != nil {
		return nil, dst, err
	}
	hint := 0
	for _, m := range news {
		at := im.index(m.name, hint)
		im = im.set(at, m.name, m.value)
		hint = at + 1
	}
	start := len(dst)
	dst = im.append(dst)
	return dst[start:len(dst):len(dst)], dst, nil
}

// Data is the data of an event, in raw JSON.
type Data struct {
	Old    []byte // object: former values of the changed fields; the whole image of a deleted aggregate
	New    []byte // object: values of the changed fields; {} deletes
	Reason []byte // any JSON; null if there is none
}

var errData = errors.New(`the data is not of the form {"old":{…},"new":{…},"reason":…}`)

// ParseData takes the data of an event apart. The slices point into it.
func ParseData(text []byte) (Data, error) {
	var room [3]member
	im, err := image(room[:0]).parse(text)
	if err != nil || len(im) != 3 || !bytes.Equal(im[0].name, nameOld) ||
		!bytes.Equal(im[1].name, nameNew) || !bytes.Equal(im[2].name, nameReason) {
		return Data{}, errData
	}
	d := Data{Old: im[0].value, New: im[1].value, Reason: im[2].value}
	if d.Old[0] != '{' || d.New[0] != '{' {
		return Data{}, errData
	}
	return d, nil
}

var (
	nameOld    = []byte(`"old"`)
	nameNew    = []byte(`"new"`)
	nameReason = []byte(`"reason"`)
)
