// Package configs has the reference configuration and mapping, which the help
// text and the demo show and use as they are.
package configs

import _ "embed"

// Backstory is backstory.yaml: every key at its default.
//
//go:embed backstory.yaml
var Backstory []byte

// Products is products.yaml: the reference mapping.
//
//go:embed products.yaml
var Products []byte
