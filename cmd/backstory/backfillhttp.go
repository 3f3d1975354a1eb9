package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"backstory/internal/bridge"
	"backstory/internal/web"
)

// pauseRequest names the tables whose backfill is to be paused or resumed; none
// means all that are being read.
type pauseRequest struct {
	Tables []string `json:"tables,omitempty"`
}

// serveBackfills lets the bridges be asked:
//
//	POST /backfill         bridge.BackfillRequest
//	POST /backfill/pause   pauseRequest
//	POST /backfill/resume  pauseRequest
//
// The answer is 202, or a text that says why not: 400 for a wrong request, 409
// for one that is not possible now, 503 while a bridge that has to do it does not
// stream.
func (p *process) serveBackfills(server *web.Server) {
	handle(server, "POST /backfill", p.backfill)
	handle(server, "POST /backfill/pause", func(ctx context.Context, r pauseRequest) error {
		return p.pauseBackfill(ctx, r.Tables, true)
	})
	handle(server, "POST /backfill/resume", func(ctx context.Context, r pauseRequest) error {
		return p.pauseBackfill(ctx, r.Tables, false)
	})
}

// requests divides a request by slots: those that have one of its tables.
func (p *process) requests(r bridge.BackfillRequest) (map[*part]bridge.BackfillRequest, error) {
	tables := p.mapping.Tables
	if len(r.Tables) > 0 {
		tables = nil
		for _, name := range r.Tables {
			t, err := bridge.TableNamed(p.mapping, name)
			if err != nil {
				return nil, err
			}
			tables = append(tables, t)
		}
	}
	if r.Where != "" && len(tables) != 1 {
		return nil, &bridge.RequestError{Problem: "a condition is for one table: name it"}
	}
	requests := map[*part]bridge.BackfillRequest{}
	for _, t := range tables {
		of := p.partOf(t)
		its, ok := requests[of]
		if !ok {
			its = r
			its.Tables = nil
		}
		its.Tables = append(its.Tables, t.String())
		requests[of] = its
	}
	return requests, nil
}

// backfill asks the bridges that have the tables, one after another. If one of
// them can't, those before it have begun, which the error says.
func (p *process) backfill(ctx context.Context, r bridge.BackfillRequest) error {
	requests, err := p.requests(r)
	if err != nil {
		return err
	}
	var begun []string
	for _, part := range p.parts {
		its, ok := requests[part]
		if !ok {
			continue
		}
		if err := part.bridge.Backfill(ctx, its); err != nil {
			if err = p.of(part, err); len(begun) > 0 {
				err = fmt.Errorf("%w; begun are %s", err, strings.Join(begun, ", "))
			}
			return err
		}
		begun = append(begun, its.Tables...)
	}
	return nil
}

// pauseBackfill pauses, or resumes, the tables that are named. If none is, it is
// enough that one bridge reads a table.
func (p *process) pauseBackfill(ctx context.Context, names []string, paused bool) error {
	requests, err := p.requests(bridge.BackfillRequest{Tables: names})
	if err != nil {
		return err
	}
	var errs []error
	idle := 0
	for _, part := range p.parts {
		its, ok := requests[part]
		if !ok {
			continue
		}
		if len(names) == 0 {
			its.Tables = nil
		}
		err := part.bridge.PauseBackfill(ctx, its.Tables, paused)
		var conflict *bridge.RequestError
		if len(names) == 0 && errors.As(err, &conflict) && conflict.Conflict {
			if idle++; idle < len(p.parts) {
				continue
			}
			return err // none of them reads
		}
		errs = append(errs, p.of(part, err))
		var notYet *bridge.ErrNotStreaming
		if errors.As(err, &notYet) {
			break // it has been waited for; another one would take as long
		}
	}
	return errors.Join(errs...)
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
