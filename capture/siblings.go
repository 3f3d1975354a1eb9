package capture

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// siblings are the slots of the other bridges of a process.
type siblings struct {
	used  []string // that the process streams from
	spare []string // that it would stream from if its mapping asked for more
}

// Among says which slots the process streams from beside this one, and which
// names of slots its mapping leaves unused: the checks then want room for all of
// them, and tell of one that was left behind. It is called before all others.
func (d *Database) Among(used, spare []string) { d.siblings = siblings{used, spare} }

// readSiblings counts the siblings that are still to be made, those that will take
// a walsender, and finds slots of spare names that nobody reads.
func (d *Database) readSiblings(ctx context.Context, conn *pgconn.PgConn, s *survey) error {
	if len(d.siblings.used)+len(d.siblings.spare) == 0 {
		return nil
	}
	rows, err := query(ctx, conn, "read the slots beside slot "+d.cfg.Slot, `
SELECT slot_name, slot_name = ANY ($1::text[]), active OR plugin <> '`+outputPlugin+`' OR database <> current_database(), active
  FROM pg_replication_slots WHERE slot_name = ANY ($1::text[] || $2::text[]) ORDER BY 1`,
		textArray(d.siblings.used), textArray(d.siblings.spare))
	if err != nil {
		return err
	}
	s.siblingsToMake, s.siblingsAsleep = len(d.siblings.used), len(d.siblings.used)
	for _, row := range rows {
		switch {
		case row[1] == "t":
			s.siblingsToMake--
			if row[3] == "t" {
				s.siblingsAsleep--
			}
		case row[2] != "t":
			s.leftSlots = append(s.leftSlots, row[0])
		}
	}
	return nil
}

// checkLeftSlots tells of slots that the mapping has no table for any more. A
// bridge of another configuration may have such a name: so it is told only, and
// only where nobody streams.
func (d *Database) checkLeftSlots(s *survey) {
	for _, name := range s.leftSlots {
		s.report.warn("slot "+name, fmt.Sprintf("if it was this bridge's, and all its changes are published: SELECT pg_drop_replication_slot(%s)", quoteLiteral(name)),
			"the mapping gives it no table, nobody streams from it, and the server keeps WAL for it")
	}
}

// textArray writes names of slots, which need no quotes, as an array.
func textArray(names []string) string { return "{" + strings.Join(names, ",") + "}" }
