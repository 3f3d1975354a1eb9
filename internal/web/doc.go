// Package web is the bridge's HTTP server: health, metrics and status for
// operators and their tools.
//
//	GET /healthz   200 while the process serves; says nothing of its peers
//	GET /readyz    200 while changes flow, else 503 with the reason
//	GET /metrics   Prometheus
//	GET /status    JSON: phase, position, tables, backfill
//
// It has no authentication: it listens on loopback unless it is told otherwise,
// and it answers only requests that name it by an address or a local name, so
// that a web page in an operator's browser cannot reach it by rebinding a name.
package web
