// Package screen shows records of the two topics to people, one line each, and
// to programs as one JSON object a line.
//
//	12:30:00.120  events  42  v7   PriceChanged    price 19.90 → 17.90  · spring sale (ann)
//	12:30:00.120  latest  42  v7   state           sku A-42, price 17.90, stock 3
//	12:30:04.007  latest  42  v8   tombstone
//
// Times are commit times in the zone of the reader. Nothing that a record holds
// can reach the terminal as a control sequence.
package screen
