package bridge

import (
	"backstory/capture"
	"backstory/internal/state"
	"backstory/transform"
)

// states is a batch of the state as the transformer sees it: the old images of
// changed keys stand beside the aggregates.
type states struct {
	*state.Batch
	top *capture.LSN // raised to the highest position that was put; nil: nobody asks
}

var _ transform.States = states{}

// Put writes the entry of an aggregate.
func (s states) Put(table uint16, key []byte, e transform.Entry) error {
	if s.top != nil {
		*s.top = max(*s.top, e.Place.Pos.LSN)
	}
	return s.Batch.Put(table, key, e)
}

// OldImage returns what SetOldImage has stored.
func (s states) OldImage(pos capture.Position) []byte {
	image, _ := s.Meta(oldImageName(pos))
	return image
}

// SetOldImage stores the image that an aggregate had before the change at pos
// gave it another key. A position is of one change only, so it needs no table.
func (s states) SetOldImage(pos capture.Position, image []byte) {
	s.SetMeta(oldImageName(pos), image)
}

func oldImageName(pos capture.Position) string {
	return string(transform.AppendSequence([]byte("old/"), transform.Place{Pos: pos}))
}
