package transform

// Mapping says which tables become which aggregates. It is decoded strictly from
// a file of its own.
type Mapping struct {
	TypePrefix string
	Tables     []*Table
}

// Table is one mapped table. The address identifies it in the running bridge,
// ID in the state.
type Table struct {
	// ID numbers the tables in the state; assigned by the bridge from the
	// state's registry of aggregates before the first use. From 1.
	ID         uint16
	Schema     string
	Name       string
	Aggregate  string   // AggregateType
	Key        []string // columns; empty: the primary key
	Topics     Topics
	Fields     map[string]string // column → field
	Omit       []string          // columns
	Rules      []Rule
	Reason     string // column that holds the reason; empty: the context message
	TypePrefix string // of ce_type
}

// Topics are the two topics of a table and how they are made.
type Topics struct {
	Events      string
	Latest      string
	Partitions  int32
	Replication int16
}

// Rule names an event after the fields that changed.
type Rule struct {
	Type string   // without prefix and suffix
	When []string // fields
}
