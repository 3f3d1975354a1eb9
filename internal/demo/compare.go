package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"backstory/transform"
)

// Source is one row of the table under the mapping's field names, as the text
// that Postgres prints; nil is NULL.
type Source map[string]*string

// Table reads the whole table as the mapping names its columns, by key.
func (s *Shop) Table(ctx context.Context, t *transform.Table) (map[string]Source, error) {
	rows, err := s.conn.Query(ctx, "select * from products", pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return nil, fmt.Errorf("read table products: %w", err)
	}
	defer rows.Close()
	table := map[string]Source{}
	for rows.Next() {
		row, key := Source{}, ""
		for i, column := range rows.FieldDescriptions() {
			value := textOf(rows.RawValues()[i])
			if column.Name == "id" {
				key = *value
			}
			if field, ok := fieldOf(t, column.Name); ok {
				row[field] = value
			}
		}
		table[key] = row
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read table products: %w", err)
	}
	return table, nil
}

func textOf(raw []byte) *string {
	if raw == nil {
		return nil
	}
	text := string(raw)
	return &text
}

// fieldOf names a column as the topics do; false if it is in no topic.
func fieldOf(t *transform.Table, column string) (string, bool) {
	if slices.Contains(t.Omit, column) || column == t.Reason {
		return "", false
	}
	if field, ok := t.Fields[column]; ok {
		return field, true
	}
	return column, true
}

// differences compares the row with what a topic says of it.
func (row Source) differences(place string, got Row) []string {
	if got == nil {
		return []string{place + ": missing"}
	}
	var found []string
	for _, field := range slices.Sorted(maps.Keys(row)) {
		if !same(got[field], row[field]) {
			found = append(found, fmt.Sprintf("%s: %s differs from the table", place, field))
		}
	}
	for field := range got {
		if _, ok := row[field]; !ok {
			found = append(found, fmt.Sprintf("%s: %s is no column", place, field))
		}
	}
	return found
}

// same compares a JSON value with the text of a column, without knowing how the
// bridge makes the one from the other.
func same(value json.RawMessage, text *string) bool {
	if text == nil {
		return string(value) == "null"
	}
	var s string
	switch {
	case len(value) == 0:
		return false
	case value[0] != '"':
		return sameJSON(value, []byte(*text))
	case json.Unmarshal(value, &s) != nil:
		return false
	}
	if s == *text {
		return true
	}
	got, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return false
	}
	want, err := time.Parse("2006-01-02 15:04:05.999999999Z07", *text)
	return err == nil && got.Equal(want)
}

// sameJSON compares without regard to white space: numbers by their text.
func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
