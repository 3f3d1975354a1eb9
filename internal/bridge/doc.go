// Package bridge owns the order in which things become durable: events, latest,
// state, confirmed LSN.
package bridge
