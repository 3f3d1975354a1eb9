// Package settings fills a configuration struct from one YAML file, the
// environment and command-line flags, the later over the earlier, all over the
// struct's defaults.
//
// A key is the path of a field's yaml tags: source.dsn. It is also the
// environment variable BACKSTORY_SOURCE_DSN and the flag --source.dsn. The fields
// are text, booleans, numbers, durations and lists of text; structs nest.
//
// Nothing is guessed: an unknown key, a value of another type, a key without a
// value or a duration without a unit is an error with its place, and all errors
// are reported together.
package settings
