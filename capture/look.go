package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// span is when a look at the catalog was, in positions of WAL. What commits below
// before was written under what the look saw, or under what it was then; what commits
// at after or above, under what the look saw, or what it has become since.
//
// A change is seen by a look if its locks were released before: who writes a row
// under it commits above that, so a commit below before is covered. And who wrote a row
// under what was before the change had released his lock when the change took its
// own: he has committed below after.
type span struct{ before, after LSN }

// look is what one look at the catalog found: the mapped tables and the publication,
// in one snapshot.
type look struct {
	span
	at          time.Time
	tables      []*tableFacts // in the order of Database.tables
	publication *publicationFacts
	types       map[uint32]ColumnType
}

// lookAgain looks at the catalog. The error is a *Refusal if publication, tables or
// their identity are not what Prepare found.
type lookAgain func(ctx context.Context) (*look, error)

// see takes a look.
func (d *Database) see(ctx context.Context, conn *pgconn.PgConn) (_ *look, err error) {
	l := &look{at: time.Now()}
	if l.before, err = endOfWAL(ctx, conn); err != nil {
		return nil, err
	}
	if err := exec(ctx, conn, "begin", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"); err != nil {
		return nil, err
	}
	for _, ref := range d.tables {
		t, err := readTable(ctx, conn, ref)
		if err != nil {
			return nil, err
		}
		l.tables = append(l.tables, t)
	}
	if l.publication, err = d.readPublication(ctx, conn); err != nil {
		return nil, err
	}
	if l.types, err = resolveTypes(ctx, conn, typesOf(l.tables)); err != nil {
		return nil, fmt.Errorf("resolve column types: %w", err)
	}
	if err := exec(ctx, conn, "commit", "COMMIT"); err != nil {
		return nil, err
	}
	l.after, err = endOfWAL(ctx, conn)
	return l, err
}

// typesOf lists the types of the tables' columns.
func typesOf(tables []*tableFacts) []uint32 {
	var oids []uint32
	for _, t := range tables {
		oids = append(oids, t.typeOIDs()...)
	}
	slices.Sort(oids)
	return slices.Compact(oids)
}

// endOfWAL is where the next record goes: above everything that is in WAL, flushed
// or not.
func endOfWAL(ctx context.Context, conn *pgconn.PgConn) (LSN, error) {
	row, err := queryRow(ctx, conn, "read the end of WAL",
		"SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END)::text")
	if err != nil {
		return 0, err
	}
	lsns, err := parseLSNs(row[0])
	if err != nil {
		return 0, fmt.Errorf("read the end of WAL: %w", err)
	}
	return lsns[0], nil
}

// shapes are those of the tables.
func (l *look) shapes() []Shape {
	shapes := make([]Shape, len(l.tables))
	for i, t := range l.tables {
		shapes[i] = t.shape(l.types, l.publication.members[t.ref.String()])
	}
	return shapes
}

// differences compares tables and publication with what Prepare found.
func (d *Database) differences(l *look, was *baseline, major int) []error {
	errs := d.publicationDifferences(l.publication, was, major)
	for i, t := range l.tables {
		if err := renamedKey(t, &was.shapes[i]); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, d.tableDifferences(t, was.tables[i].Relation, l.publication)...)
	}
	return errs
}

// lookAgain is the stream's lookAgain, on a connection of its own. While somebody
// alters a table, it waits for that.
func (d *Database) lookAgain(ctx context.Context) (*look, error) {
	d.mu.Lock()
	was := d.baseline
	d.mu.Unlock()
	for told := false; ; told = true {
		l, err := d.lookOnce(ctx, was)
		if sqlState(err) != codeLockNotAvailable {
			return l, err
		}
		if !told {
			d.log.Warn("the stream waits for a lock on a mapped table, to look at its columns")
		}
		if err := pause(ctx, lockRetryPause); err != nil {
			return nil, err
		}
	}
}

func (d *Database) lookOnce(ctx context.Context, was *baseline) (*look, error) {
	conn, err := d.connect(ctx, false)
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn)
	l, err := d.see(ctx, conn)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(d.differences(l, was, serverMajor(conn))...); err != nil {
		return nil, err
	}
	return l, nil
}

// lookUp looks at the catalog again if the transaction that commits at the position
// may have been written under another one than the newest look found.
func (r *relations) lookUp(ctx context.Context, commit LSN) error {
	if r.look == nil || commit < r.looked.before {
		return nil
	}
	l, err := r.look(ctx)
	if err != nil {
		return fmt.Errorf("look at the tables and the publication: %w", err)
	}
	return r.adopt(l)
}

// adopt takes in a look that found nothing to refuse, unless there was a newer one.
func (r *relations) adopt(l *look) error {
	if l.before < r.looked.before {
		return nil
	}
	r.looked = l.span
	for _, now := range l.shapes() {
		was := r.shapes[now.Table]
		if was == nil {
			continue // the differences have told
		}
		now = now.Follow(was, l.after, l.at.Unix())
		if problem := now.KeyChange(was); problem != "" {
			return keyRefusal(&now, problem)
		}
		if !now.Equal(was) {
			*was = now
			r.changed = append(r.changed, now)
		}
	}
	return nil
}

// keyRefusal says that the rows of a table have other keys than before.
func keyRefusal(s *Shape, problem string) error {
	return &Refusal{Thing: "table " + s.Schema + "." + s.Name, Problem: problem + ": the keys of its rows may print differently now",
		Cure: KeyChangeCure}
}

// KeyChangeCure is the way out where the keys of a table's rows are others than before.
const KeyChangeCure = "run `backstory backfill --reconcile`: it passes over what WAL still has of the table and compares the table with the state, " +
	"so that aggregates of former keys are deleted and those of the present ones made"

// renamedKey says which columns of a key that the mapping names have other names by
// now, and which; nil if there are none.
func renamedKey(t *tableFacts, shape *Shape) error {
	lacks := missing(t.columnNames(), t.ref.Key)
	if len(lacks) == 0 || t.oid != shape.Table {
		return nil
	}
	var now []string
	for _, num := range shape.Key {
		i := slices.IndexFunc(t.columns, func(c columnFacts) bool { return c.num == num })
		if i < 0 {
			return nil // it is gone
		}
		now = append(now, t.columns[i].name)
	}
	return &UsageError{Key: "table " + t.ref.String() + ", key",
		Problem: fmt.Sprintf("column %s was renamed: write key: [%s]; the history goes on", strings.Join(lacks, ", "), strings.Join(now, ", "))}
}
