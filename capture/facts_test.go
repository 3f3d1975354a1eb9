package capture

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// From 19 on the first logical slot raises the level of a server that is at
// replica. No build of 19 is served yet: the facts are made up.
func TestWALLevel(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name             string
		major            int
		level, effective string
		want             Level
		found            string
	}{
		{name: "logical", major: 15, level: "logical", found: "logical"},
		{name: "replica before 19", major: 18, level: "replica", want: LevelError, found: "replica"},
		{name: "minimal before 19", major: 10, level: "minimal", want: LevelError, found: "minimal"},
		{name: "replica on 19, no slot yet", major: 19, level: "replica", effective: "replica", found: "replica; it will be raised to logical when the slot is made"},
		{name: "replica on 19, with a slot", major: 19, level: "replica", effective: "logical", found: "logical"},
		{name: "logical on 19", major: 19, level: "logical", effective: "logical", found: "logical"},
		{name: "minimal on 19", major: 19, level: "minimal", effective: "minimal", want: LevelError, found: "minimal"},
	}
	for _, tt := range tests {
		s := survey{major: tt.major, server: serverFacts{walLevel: tt.level, effective: tt.effective}}
		s.checkWALLevel()
		if f := s.report.Findings; len(f) != 1 || f[0].Level != tt.want || f[0].Found != tt.found || (f[0].Cure == "") != (tt.want == LevelOK) {
			t.Errorf("%s: got %+v, want %s %q", tt.name, f, tt.want, tt.found)
		}
	}
}

// What is said of fail-over depends on the version, the setting, the slot and whether
// there are standbys.
func TestFailoverChecks(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		failover string
		major    int
		standby  bool
		slot     SlotStatus
		facts    failoverFacts
		want     []Level
	}{
		{name: "auto before 17", failover: failoverAuto, major: 16, facts: failoverFacts{standbys: []string{"s"}}},
		{name: "on before 17", failover: failoverOn, major: 16, want: []Level{LevelError}},
		{name: "on, decoding on a standby", failover: failoverOn, major: 18, standby: true, want: []Level{LevelError}},
		{name: "auto, decoding on a standby", failover: failoverAuto, major: 18, standby: true},
		{name: "no standbys", failover: failoverAuto, major: 17},
		{name: "off, no standbys", failover: failoverOff, major: 17},
		{name: "off, standbys", failover: failoverOff, major: 17, facts: failoverFacts{standbys: []string{"s"}}, want: []Level{LevelWarning}},
		{name: "off, but it has it", failover: failoverOff, major: 17, slot: SlotStatus{Exists: true, Failover: true},
			facts: failoverFacts{standbys: []string{"s"}, waitsFor: "s"}, want: []Level{LevelOK}},
		{name: "to be made", failover: failoverAuto, major: 19, facts: failoverFacts{standbys: []string{"s"}, waitsFor: "s"}, want: []Level{LevelOK}},
		{name: "to be altered", failover: failoverOn, major: 18, slot: SlotStatus{Exists: true},
			facts: failoverFacts{standbys: []string{"s"}, waitsFor: "s"}, want: []Level{LevelWarning}},
		{name: "nobody is waited for", failover: failoverAuto, major: 17, slot: SlotStatus{Exists: true, Failover: true},
			facts: failoverFacts{standbys: []string{"s"}}, want: []Level{LevelOK, LevelWarning}},
	}
	for _, tt := range tests {
		d := &Database{cfg: Config{Slot: "backstory", Failover: tt.failover}}
		s := survey{major: tt.major, server: serverFacts{standby: tt.standby}, slot: tt.slot, failover: tt.facts}
		d.checkFailover(&s)
		var got []Level
		for _, f := range s.report.Findings {
			got = append(got, f.Level)
		}
		if len(got) != len(tt.want) {
			t.Errorf("%s: got %+v, want levels %v", tt.name, s.report.Findings, tt.want)
			continue
		}
		for i := range got {
			if got[i] != tt.want[i] {
				t.Errorf("%s: got %+v, want levels %v", tt.name, s.report.Findings, tt.want)
			}
		}
	}
}

// A slot that cannot be altered ends nothing but what was asked for by on.
func TestSlotNotAltered(t *testing.T) {
	t.Parallel()
	refused := fmt.Errorf("step: %w", &pgconn.PgError{Code: "0A000", Message: "cannot enable failover"})
	tests := []struct {
		name, failover string
		err            error
		want           string // of a refusal; "-": the error as it is; empty: a warning
	}{
		{name: "auto", failover: failoverAuto, err: refused},
		{name: "on", failover: failoverOn, err: refused, want: "slot s: source.failover is on, and the server does not let standbys copy it: cannot enable failover; cure: "},
		{name: "auto, taken by another", failover: failoverAuto, err: &pgconn.PgError{Code: codeObjectInUse}, want: "-"},
		{name: "on, taken by another", failover: failoverOn, err: &pgconn.PgError{Code: codeObjectInUse}, want: "-"},
		{name: "on, connection lost", failover: failoverOn, err: &ConnError{Step: "step", Err: errors.New("gone")}, want: "-"},
		{name: "on, server stops", failover: failoverOn, err: &pgconn.PgError{Code: "57P01"}, want: "-"},
	}
	for _, tt := range tests {
		var log bytes.Buffer
		d := &Database{cfg: Config{Slot: "s", Failover: tt.failover}, log: slog.New(slog.NewTextHandler(&log, nil))}
		err := d.notAltered(tt.err)
		var refusal *Refusal
		switch tt.want {
		case "":
			if err != nil || !strings.Contains(log.String(), "level=WARN") {
				t.Errorf("%s: got %v and log %q, want a warning", tt.name, err, log.String())
			}
		case "-":
			if !errors.Is(err, tt.err) || errors.As(err, &refusal) || log.Len() > 0 {
				t.Errorf("%s: got %v and log %q, want the error", tt.name, err, log.String())
			}
		default:
			if !errors.As(err, &refusal) || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("%s: got %v, want a refusal %q", tt.name, err, tt.want)
			}
		}
	}
}
