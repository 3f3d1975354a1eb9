package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"backstory/internal/bridge"
	"backstory/internal/web"
)

// pauseRequest names the tables whose backfill is to be paused or resumed; none
// means all that are being read.
type pauseRequest struct {
	Tables []string `json:"tables,omitempty"`
}

// serveBackfills lets the bridge be asked:
//
//	POST /backfill         bridge.BackfillRequest
//	POST /backfill/pause   pauseRequest
//	POST /backfill/resume  pauseRequest
//
// The answer is 202, or a text that says why not: 400 for a wrong request, 409
// for one that is not possible now, 503 while the bridge does not stream.
func serveBackfills(server *web.Server, b *bridge.Bridge) {
	handle(server, "POST /backfill", b.Backfill)
	handle(server, "POST /backfill/pause", func(ctx context.Context, r pauseRequest) error {
		return b.PauseBackfill(ctx, r.Tables, true)
	})
	handle(server, "POST /backfill/resume", func(ctx context.Context, r pauseRequest) error {
		return b.PauseBackfill(ctx, r.Tables, false)
	})
}

func handle[R any](server *web.Server, pattern string, do func(context.Context, R) error) {
	server.Handle(pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request R
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := d.Decode(&request); err != nil {
			http.Error(w, "the request is no JSON of the right form: "+err.Error(), http.StatusBadRequest)
			return
		}
		if err := do(r.Context(), request); err != nil {
			http.Error(w, err.Error(), statusOf(err))
			return
		}
		w.WriteHeader(http.StatusAccepted)
	}))
}

// statusOf is the HTTP status for an error of a request.
func statusOf(err error) int {
	if notStreaming := new(bridge.ErrNotStreaming); errors.As(err, &notStreaming) {
		return http.StatusServiceUnavailable
	}
	switch exitCode(err) {
	case exitUsage:
		return http.StatusBadRequest
	case exitRefused:
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}
