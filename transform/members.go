package transform

// Member is a member of a JSON object: raw, the name with its quotes.
type Member struct{ Name, Value []byte }

// Members appends the members of an object that this package has written, such
// as an image, in their order. The slices point into the text.
func Members(dst []Member, text []byte) ([]Member, error) {
	var room [64]member
	im, err := image(room[:0]).parse(text)
	if err != nil {
		return dst, err
	}
	for _, m := range im {
		dst = append(dst, Member{Name: m.name, Value: m.value})
	}
	return dst, nil
}
