package capture

import (
	"bytes"
	"encoding/json"
	"strings"
)

// contextPrefix is the prefix of the messages that carry a Context.
const contextPrefix = "backstory.context"

// ownPrefix begins the prefix of every message that is meant for backstory.
const ownPrefix = "backstory."

// parseContext reads what the writing transaction said of its changes: a JSON
// object with any of reason, actor, correlation_id and causation_id. It returns
// nil where nothing is said, which clears what an earlier message said. Content
// that is no JSON object becomes the reason, as text: a mistake in a message
// must neither stop the bridge nor be lost. The result holds no bytes of content.
func parseContext(content []byte) *Context {
	content = bytes.ToValidUTF8(content, []byte("\uFFFD"))
	if len(bytes.TrimSpace(content)) == 0 {
		return nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(content, &members); err != nil || members == nil {
		return &Context{Reason: quoteJSON(string(content))}
	}
	parsed := Context{
		Reason:        compactJSON(members["reason"]),
		Actor:         textOf(members["actor"]),
		CorrelationID: textOf(members["correlation_id"]),
		CausationID:   textOf(members["causation_id"]),
	}
	if parsed.Reason == nil && parsed.Actor == "" && parsed.CorrelationID == "" && parsed.CausationID == "" {
		return nil
	}
	return &parsed
}

// compactJSON returns a valid JSON value in the form in which it is embedded:
// strings quoted anew, everything else without white space; nil for none and null.
func compactJSON(value json.RawMessage) []byte {
	var s *string
	if len(value) == 0 || json.Unmarshal(value, &s) == nil {
		if s == nil {
			return nil
		}
		return quoteJSON(*s)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, value); err != nil {
		return quoteJSON(string(value)) // unreachable: the value was part of valid JSON
	}
	return compact.Bytes()
}

// textOf returns a string value as it is, any other as its JSON text, and ""
// for none and null.
func textOf(value json.RawMessage) string {
	var s *string
	if len(value) == 0 || json.Unmarshal(value, &s) == nil {
		if s == nil {
			return ""
		}
		return *s
	}
	return string(compactJSON(value))
}

// quoteJSON returns s as a JSON string, without escapes for HTML.
func quoteJSON(s string) []byte {
	var quoted strings.Builder
	encoder := json.NewEncoder(&quoted)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(s); err != nil {
		return []byte("null") // unreachable: every string has a JSON form
	}
	return []byte(strings.TrimSuffix(quoted.String(), "\n"))
}
