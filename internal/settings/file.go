package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// file is the YAML file as its author wrote it: where each key stands, and what
// is wrong with it before any value is looked at.
type file struct {
	name   string
	known  map[string]bool // keys
	names  []string        // the same, in order, for suggestions
	places map[string]int  // key → line
	errs   []error
}

// parseFile walks the file's nodes. The error is of its syntax; wrong keys are
// collected in errs.
func parseFile(name string, data []byte, keys []Key) (*file, error) {
	f := &file{name: name, known: map[string]bool{}, places: map[string]int{}}
	for _, k := range keys {
		f.names = append(f.names, k.Name)
		f.known[k.Name] = true
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var root yaml.Node
	if err := decoder.Decode(&root); errors.Is(err, io.EOF) {
		return f, nil // no content: defaults
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: more than one YAML document; keep one", name)
	}
	f.section("", root.Content[0])
	return f, nil
}

// section checks the mapping below a prefix ("" or "kafka.sasl.").
func (f *file) section(prefix string, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a section whose keys are all commented out
	}
	if n.Kind != yaml.MappingNode {
		f.fault(n, "%q: want keys below it, got a value", strings.TrimSuffix(prefix, "."))
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		f.entry(prefix, n.Content[i], n.Content[i+1])
	}
}

func (f *file) entry(prefix string, key, value *yaml.Node) {
	name := prefix + key.Value
	line, twice := f.places[name]
	f.places[name] = key.Line
	switch {
	case twice:
		f.fault(key, "%s: already set in line %d", name, line)
	case f.isSection(name):
		f.section(name+".", value)
	case f.known[name] && strings.Contains(key.Value, "."):
		f.fault(key, "%s: write the key below its section, not with a dot", name)
	case !f.known[name]:
		f.fault(key, "%s: unknown key%s", name, hint(Nearest(name, f.names)))
	case value.Kind == yaml.ScalarNode && value.Tag == "!!null":
		f.fault(key, "%s: no value; write one, or take the key out for its default", name)
	}
}

func (f *file) isSection(name string) bool {
	for _, k := range f.names {
		if strings.HasPrefix(k, name+".") {
			return true
		}
	}
	return false
}

func (f *file) fault(n *yaml.Node, format string, args ...any) {
	f.errs = append(f.errs, fmt.Errorf("%s:%d: "+format, append([]any{f.name, n.Line}, args...)...))
}

func hint(nearest string) string {
	if nearest == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", nearest)
}
