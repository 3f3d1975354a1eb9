package capture

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
)

// SuccessionKind says how the history of a server follows that of an identity.
type SuccessionKind uint8

// The kinds.
const (
	// SameTimeline: the server is still on the timeline.
	SameTimeline SuccessionKind = iota
	// Continues: the server's timeline branched off behind the position that was
	// asked for, so everything up to it is in the server's past.
	Continues
	// Diverged: the server's timeline branched off at or before that position. What
	// the identity has from there on never happened for the server.
	Diverged
	// Unrelated: the timeline is none of the server's past, or the server is
	// another one.
	Unrelated
)

// String returns the name of the kind.
func (k SuccessionKind) String() string {
	switch k {
	case SameTimeline:
		return "same timeline"
	case Continues:
		return "continues"
	case Diverged:
		return "diverged"
	}
	return "unrelated"
}

// Succession is what a server says of the end of a timeline.
type Succession struct {
	To Identity // the server, as it is now
	// Branched is where the timeline ended on the way to the server's: below it both
	// have the same WAL. 0 unless the kind is Continues or Diverged.
	Branched LSN
	// Began is where the timeline itself began, by the server's history; 0 of the first
	// one, if the kind is Unrelated, and if the server has no history file any more. Two standbys that do not know of each other may
	// give their timelines one number: only together with its beginning is it one timeline.
	Began LSN
	Kind  SuccessionKind
}

// Succession asks the server how its history follows that of an identity of which
// something is known up to and including the record at the position.
//
// It is the server's timeline history file that decides, by the command
// TIMELINE_HISTORY of the streaming protocol ("Streaming Replication Protocol" in
// the documentation of Postgres): one line for each timeline that the server's
// descends from, with the position at which the next one branched off.
func (d *Database) Succession(ctx context.Context, from Identity, at LSN) (Succession, error) {
	conn, err := d.connect(ctx, true)
	if err != nil {
		return Succession{}, err
	}
	defer closeConn(ctx, conn)
	now, _, err := identify(ctx, conn)
	if err != nil {
		return Succession{}, err
	}
	s := Succession{To: now, Kind: Unrelated}
	if from.System != now.System || from.Database != now.Database || from.Timeline > now.Timeline {
		return s, nil
	}
	history, err := timelineHistory(ctx, conn, now.Timeline)
	if err != nil {
		return Succession{}, err
	}
	if from.Timeline == now.Timeline {
		s.Kind = SameTimeline
		if n := len(history); n > 0 {
			s.Began = history[n-1].ended
		}
		return s, nil
	}
	i := slices.IndexFunc(history, func(t timeline) bool { return t.number == from.Timeline })
	switch {
	case i < 0:
		return s, nil
	case at < history[i].ended:
		s.Kind = Continues
	default:
		s.Kind = Diverged
	}
	s.Branched = history[i].ended
	if i > 0 {
		s.Began = history[i-1].ended
	}
	return s, nil
}

// identify asks a walsender which server it is of, and where its WAL ends.
func identify(ctx context.Context, conn *pgconn.PgConn) (Identity, LSN, error) {
	const step = "identify the server"
	system, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return Identity{}, 0, stepError(ctx, step, err)
	}
	id, err := strconv.ParseUint(system.SystemID, 10, 64)
	if err != nil {
		return Identity{}, 0, fmt.Errorf("%s: %w", step, err)
	}
	return Identity{System: id, Timeline: system.Timeline, Database: system.DBName}, system.XLogPos, nil
}

// timeline is a line of a history file.
type timeline struct {
	number int32
	ended  LSN // where the next one of the file branched off
}

// timelineHistory returns the timelines that the given one descends from, the first
// one first; none if there is no history file, as of the first timeline of a cluster.
func timelineHistory(ctx context.Context, conn *pgconn.PgConn, number int32) ([]timeline, error) {
	if number <= 1 {
		return nil, nil
	}
	step := fmt.Sprintf("read the history of timeline %d", number)
	file, err := pglogrepl.TimelineHistory(ctx, conn, number)
	if sqlState(err) == codeUndefinedFile {
		return nil, nil // somebody has tidied up
	}
	if err != nil {
		return nil, stepError(ctx, step, err)
	}
	history, err := parseTimelineHistory(string(file.Content))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", step, err)
	}
	return history, nil
}

// parseTimelineHistory parses a timeline history file: lines of timeline, position
// and reason, separated by tabs; what begins with # is a comment.
func parseTimelineHistory(text string) ([]timeline, error) {
	var history []timeline
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			return nil, fmt.Errorf("line %q of the history file has no position", line)
		}
		number, err := strconv.ParseInt(fields[0], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("line %q of the history file: %q is no timeline", line, fields[0])
		}
		ended, err := parseLSNs(fields[1])
		if err != nil {
			return nil, fmt.Errorf("line %q of the history file: %w", line, err)
		}
		history = append(history, timeline{int32(number), ended[0]})
	}
	return history, nil
}
