package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Writer is one session of the legacy application: it commits random
// transactions of many shapes until its budget is spent or ctx ends. It survives
// a database that goes away.
type Writer struct {
	DSN    string
	Seed   uint64
	Keys   int64 // ids 1..Keys are written
	Serial int   // number of the writer: it inserts ids of its own range
	// Truncate lets one transaction in a thousand truncate the table.
	Truncate bool
	// Changes counts row changes of committed transactions, all writers together.
	Changes *atomic.Int64
	// Budget ends the writer when Changes reaches it; 0: only ctx does.
	Budget int64
	// Pause between transactions; 0: none.
	Pause time.Duration
	// Hold is held for reading while a transaction runs, so that who locks it
	// holds all writers; nil: nobody does.
	Hold *sync.RWMutex

	rng  *rand.Rand
	next int64
	n    int64 // changes of the open transaction
}

// Run writes. A transaction whose outcome is unknown is the audit's business: it
// has its notes or it has not.
func (w *Writer) Run(ctx context.Context) error {
	w.rng = rand.New(rand.NewPCG(w.Seed, uint64(w.Serial)))
	w.next = int64(w.Serial+1) * 1_000_000_000
	var conn *pgx.Conn
	defer func() { closeQuietly(conn) }()
	for ctx.Err() == nil && (w.Budget == 0 || w.Changes.Load() < w.Budget) {
		if conn == nil || conn.IsClosed() {
			var err error
			if conn, err = pgx.Connect(ctx, w.DSN); err != nil {
				conn = nil
				pause(ctx, 100*time.Millisecond)
				continue
			}
		}
		if err := w.held(ctx, conn); err != nil && !passing(err) && ctx.Err() == nil {
			return fmt.Errorf("writer %d: %w", w.Serial, err)
		}
		pause(ctx, w.Pause)
	}
	return nil
}

func closeQuietly(conn *pgx.Conn) {
	if conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the server may be gone; nothing hangs on it
	}
}

func pause(ctx context.Context, d time.Duration) {
	if d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
}

// passing tells errors that a legacy application lives with from mistakes of the
// suite: lost connections, deadlocks, duplicate keys, locks not had in time.
func passing(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return true
	}
	switch pg.Code {
	case "40P01", "40001", "23505", "55P03", "57014":
		return true
	}
	return pg.Code[:2] == "57" || pg.Code[:2] == "08" || pg.Code[:2] == "53"
}

func (w *Writer) held(ctx context.Context, conn *pgx.Conn) error {
	if w.Hold != nil {
		w.Hold.RLock()
		defer w.Hold.RUnlock()
	}
	return w.transaction(ctx, conn)
}

// transaction commits one random transaction.
func (w *Writer) transaction(ctx context.Context, conn *pgx.Conn) error {
	w.n = 0
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return w.shape(ctx, tx) })
	if err == nil {
		w.Changes.Add(w.n)
	}
	return err
}

func (w *Writer) shape(ctx context.Context, tx pgx.Tx) error {
	switch p := w.rng.IntN(1000); {
	case p < 300:
		return w.update(ctx, tx)
	case p < 420:
		return w.reasons(ctx, tx)
	case p < 560:
		return w.many(ctx, tx, 2+w.rng.IntN(20))
	case p < 640:
		return w.savepoints(ctx, tx)
	case p < 740:
		return w.insert(ctx, tx)
	case p < 820:
		return w.remove(ctx, tx)
	case p < 880:
		return w.move(ctx, tx)
	case p < 940:
		return w.large(ctx, tx)
	case p < 990:
		return w.batch(ctx, tx)
	case p < 999 || !w.Truncate:
		return w.reborn(ctx, tx)
	}
	return w.truncate(ctx, tx)
}

func (w *Writer) key() int64 { return 1 + w.rng.Int64N(w.Keys) }

// exec counts the row changes of a statement.
func (w *Writer) exec(ctx context.Context, tx pgx.Tx, sql string, args ...any) error {
	tag, err := tx.Exec(ctx, sql, args...)
	if err == nil {
		w.n += tag.RowsAffected()
	}
	return err
}

// update changes one or more rule fields, other fields, or nothing at all.
func (w *Writer) update(ctx context.Context, tx pgx.Tx) error {
	sets := []string{
		`price = price + 0.01`, `stock = stock + 1`, `price = price * 1.10, stock = stock - 2`, `name = name || '!'`,
		`price = NULL`, `price = 19.90`, `attributes = attributes || '{"x": 1.50}'`, `tags = tags || ARRAY['t']`,
		`active = NOT active`, `weight = random()`, `updated_at = clock_timestamp()`, `sku = sku`,
		`currency = 'CHF', price = 1.00, stock = 0, updated_at = clock_timestamp()`,
	}
	return w.exec(ctx, tx, `UPDATE products SET `+sets[w.rng.IntN(len(sets))]+` WHERE id = $1`, w.key())
}

// reasons says why before, between or after the changes.
func (w *Writer) reasons(ctx context.Context, tx pgx.Tx) error {
	for i := range 1 + w.rng.IntN(4) {
		if w.rng.IntN(2) == 0 {
			if _, err := tx.Exec(ctx, `SELECT say($1)`, fmt.Sprintf("sale %d \"%d\"", w.rng.IntN(100), i)); err != nil {
				return err
			}
		}
		if err := w.update(ctx, tx); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) many(ctx context.Context, tx pgx.Tx, n int) error {
	for range n {
		if err := w.update(ctx, tx); err != nil {
			return err
		}
	}
	return nil
}

// savepoints rolls some of its changes back, nested.
func (w *Writer) savepoints(ctx context.Context, tx pgx.Tx) error {
	undo := errors.New("undo")
	for range 1 + w.rng.IntN(4) {
		before := w.n
		rollback := w.rng.IntN(2) == 0
		err := pgx.BeginFunc(ctx, tx, func(sub pgx.Tx) error {
			if err := w.reasons(ctx, sub); err != nil {
				return err
			}
			if rollback {
				return undo
			}
			return nil
		})
		if errors.Is(err, undo) {
			w.n = before
			continue
		}
		if err != nil {
			return err
		}
	}
	return w.update(ctx, tx)
}

func (w *Writer) insert(ctx context.Context, tx pgx.Tx) error {
	n := int64(1 + w.rng.IntN(5))
	from := w.next
	w.next += n
	return w.exec(ctx, tx, fmt.Sprintf(`INSERT INTO products %s`, generated(fmt.Sprint(from+1), fmt.Sprint(from+n))))
}

func (w *Writer) remove(ctx context.Context, tx pgx.Tx) error {
	if w.rng.IntN(2) == 0 && w.next > int64(w.Serial+1)*1_000_000_000 {
		return w.exec(ctx, tx, `DELETE FROM products WHERE id = $1`, w.next-w.rng.Int64N(5))
	}
	return w.exec(ctx, tx, `DELETE FROM products WHERE id = $1`, w.key())
}

// move changes a primary key, half of the time with other fields, and sometimes back.
func (w *Writer) move(ctx context.Context, tx pgx.Tx) error {
	key := w.key()
	w.next++
	to := w.next
	set := ``
	if w.rng.IntN(2) == 0 {
		set = `, price = 5.00`
	}
	if err := w.exec(ctx, tx, `UPDATE products SET id = $2`+set+` WHERE id = $1`, key, to); err != nil {
		return err
	}
	if w.rng.IntN(2) == 0 {
		return w.exec(ctx, tx, `UPDATE products SET id = $2 WHERE id = $1`, to, key)
	}
	return nil
}

// large writes a value that is stored out of line, or updates around one.
func (w *Writer) large(ctx context.Context, tx pgx.Tx) error {
	if w.rng.IntN(2) == 0 {
		return w.exec(ctx, tx, `UPDATE products SET description = repeat(md5(random()::text), 100) WHERE id = $1`, w.key())
	}
	return w.exec(ctx, tx, `UPDATE products SET price = price + 1 WHERE id = $1`, 20*(1+w.rng.Int64N(max(1, w.Keys/20))))
}

func (w *Writer) batch(ctx context.Context, tx pgx.Tx) error {
	from := w.key()
	return w.exec(ctx, tx, `UPDATE products SET stock = stock + 1, price = price + 0.5 WHERE id BETWEEN $1 AND $1 + 50`, from)
}

// reborn deletes a row and makes its key anew, in one transaction.
func (w *Writer) reborn(ctx context.Context, tx pgx.Tx) error {
	key := w.key()
	if err := w.exec(ctx, tx, `DELETE FROM products WHERE id = $1`, key); err != nil {
		return err
	}
	return w.exec(ctx, tx, `INSERT INTO products `+generated(fmt.Sprint(key), fmt.Sprint(key)))
}

// truncate empties the table and puts some rows back.
func (w *Writer) truncate(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '2s'`); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `TRUNCATE products`); err != nil {
		return err
	}
	w.n++
	return w.exec(ctx, tx, `INSERT INTO products `+generated("1", fmt.Sprint(w.Keys)))
}

// Giant commits one transaction of n changes: rows of ids that no other shape
// inserts, from those of its Serial on.
func (w *Writer) Giant(ctx context.Context, n int64) error {
	conn, err := pgx.Connect(ctx, w.DSN)
	if err != nil {
		return err
	}
	defer closeQuietly(conn)
	from := 5_000_000_000 + int64(w.Serial)*1_000_000
	tag, err := conn.Exec(ctx, `INSERT INTO products `+generated(fmt.Sprint(from+1), fmt.Sprint(from+n)))
	if err == nil {
		w.Changes.Add(tag.RowsAffected())
	}
	return err
}
