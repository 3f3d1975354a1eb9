package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// least is how many products the shop keeps, whatever it discontinues.
const least = 6

// Shop writes the table as a legacy application does: one short transaction for
// each thing that happens. It is for one goroutine.
type Shop struct {
	conn  *pgx.Conn
	rng   *rand.Rand
	ids   []int64 // products that exist
	gone  []int64 // ids of deleted ones
	steps int
	made  int // products made so far, for their numbers
}

// OpenShop connects to the database, and creates the table if it is not there.
// The same seed does the same things.
func OpenShop(ctx context.Context, dsn string, seed uint64) (*Shop, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("connect the shop: %w", err)
	}
	s := &Shop{conn: conn, rng: rand.New(rand.NewPCG(seed, seed))}
	if err := s.prepare(ctx); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx)) // the error that counts is the first
		return nil, err
	}
	return s, nil
}

func (s *Shop) prepare(ctx context.Context) error {
	if _, err := s.conn.Exec(ctx, schema); err != nil {
		return fmt.Errorf("create table products: %w", err)
	}
	rows, err := s.conn.Query(ctx, "select id from products order by id")
	if err != nil {
		return fmt.Errorf("read products: %w", err)
	}
	if s.ids, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
		return fmt.Errorf("read products: %w", err)
	}
	err = s.conn.QueryRow(ctx, "select coalesce(max(substring(sku from '[0-9]+')::int), 0) from products").Scan(&s.made)
	if err != nil {
		return fmt.Errorf("read products: %w", err)
	}
	return nil
}

// Close ends the connection.
func (s *Shop) Close(ctx context.Context) error { return s.conn.Close(ctx) }

// Products returns how many there are.
func (s *Shop) Products() int { return len(s.ids) }

// Stock fills the table up to n products, in one transaction and with no reason
// given: what was there before anybody watched. Every fifth has a description
// that Postgres stores out of line.
func (s *Shop) Stock(ctx context.Context, n int) error {
	return s.transact(ctx, nil, func(tx pgx.Tx) error {
		for len(s.ids) < n {
			if err := s.insert(ctx, tx, 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// act is one thing that happens in the shop.
type act struct {
	weight int
	run    func(*Shop, context.Context) error
}

// acts come in this order at first, so that each is seen soon, then at random by
// weight.
var acts = []act{
	{38, (*Shop).changePrice},
	{28, (*Shop).adjustStock},
	{8, (*Shop).add},
	{8, (*Shop).describe},
	{6, (*Shop).sellOut},
	{5, (*Shop).discontinue},
	{4, (*Shop).renumber},
	{3, (*Shop).bringBack},
}

// Step does the next thing, in one transaction.
func (s *Shop) Step(ctx context.Context) error {
	n := s.steps
	s.steps++
	if n < len(acts) {
		return acts[n].run(s, ctx)
	}
	total := 0
	for _, a := range acts {
		total += a.weight
	}
	r := s.rng.IntN(total)
	for _, a := range acts {
		if r -= a.weight; r < 0 {
			return a.run(s, ctx)
		}
	}
	return nil
}

func (s *Shop) changePrice(ctx context.Context) error {
	percent := pick(s.rng, []int{80, 90, 95, 105, 110, 125})
	why := pick(s.rng, lowered)
	if percent > 100 {
		why = pick(s.rng, raised)
	}
	return s.update(ctx, &why, "update products set unit_price = greatest(1, round(unit_price * $2 / 100, 2)) where id = $1",
		pick(s.rng, s.ids), percent)
}

func (s *Shop) adjustStock(ctx context.Context) error {
	by := pick(s.rng, []int{-1, -1, -2, -3, -5, 1, 10, 25})
	why := pick(s.rng, sold)
	if by > 0 {
		why = pick(s.rng, received)
	}
	return s.update(ctx, &why, "update products set stock = greatest(0, stock + $2) where id = $1", pick(s.rng, s.ids), by)
}

// describe changes what no rule of the mapping names, and gives no reason.
func (s *Shop) describe(ctx context.Context) error {
	return s.update(ctx, nil, `update products set attributes = attributes || jsonb_build_object('colour', $2::text) where id = $1`,
		pick(s.rng, s.ids), pick(s.rng, colours))
}

// sellOut changes price and stock in one statement: two events.
func (s *Shop) sellOut(ctx context.Context) error {
	return s.update(ctx, &occasion{"clearance", "ann"},
		"update products set unit_price = round(unit_price / 2, 2), stock = stock / 2 where id = $1", pick(s.rng, s.ids))
}

func (s *Shop) add(ctx context.Context) error {
	return s.transact(ctx, &occasion{"new in the range", "ben"}, func(tx pgx.Tx) error { return s.insert(ctx, tx, 0) })
}

func (s *Shop) discontinue(ctx context.Context) error {
	if len(s.ids) <= least {
		return s.add(ctx)
	}
	why, i := pick(s.rng, ended), s.rng.IntN(len(s.ids))
	id := s.ids[i]
	if err := s.update(ctx, &why, "delete from products where id = $1", id); err != nil {
		return err
	}
	s.ids = append(s.ids[:i], s.ids[i+1:]...)
	s.gone = append(s.gone, id)
	return nil
}

// renumber changes a primary key.
func (s *Shop) renumber(ctx context.Context) error {
	i := s.rng.IntN(len(s.ids))
	old := s.ids[i]
	var id int64
	err := s.transact(ctx, &occasion{"moved to the new numbering", "cho"}, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "update products set id = nextval(pg_get_serial_sequence('products','id')) where id = $1 returning id", old).Scan(&id)
	})
	if err != nil {
		return err
	}
	s.ids[i] = id
	s.gone = append(s.gone, old)
	return nil
}

// bringBack creates a product under the id of a deleted one.
func (s *Shop) bringBack(ctx context.Context) error {
	if len(s.gone) == 0 {
		return s.add(ctx)
	}
	i := s.rng.IntN(len(s.gone))
	id := s.gone[i]
	err := s.transact(ctx, &occasion{"back in the range", "ben"}, func(tx pgx.Tx) error { return s.insert(ctx, tx, id) })
	if err != nil {
		return err
	}
	s.gone = append(s.gone[:i], s.gone[i+1:]...)
	return nil
}

// insert adds a product, under the next id if id is 0.
func (s *Shop) insert(ctx context.Context, tx pgx.Tx, id int64) error {
	s.made++
	a := articles[s.made%len(articles)]
	description := "ships in two days"
	if s.made%5 == 0 {
		description = s.novel()
	}
	args := []any{fmt.Sprintf("SKU-%05d", s.made), a.name, description, fmt.Sprintf("%d.%02d", a.cents/100, a.cents%100),
		5 + s.rng.IntN(80), fmt.Sprintf(`{"colour":%q,"weight_g":%d}`, pick(s.rng, colours), 100+s.rng.IntN(9000))}
	columns, values := "sku, name, description, unit_price, stock, attributes", "$1, $2, $3, $4::text::numeric, $5, $6::text::jsonb"
	if id != 0 {
		columns, values, args = columns+", id", values+", $7", append(args, id)
	}
	if err := tx.QueryRow(ctx, "insert into products ("+columns+") values ("+values+") returning id", args...).Scan(&id); err != nil {
		return err
	}
	s.ids = append(s.ids, id)
	return nil
}

// novel is so long, also compressed, that Postgres keeps it out of line: an update
// that leaves it alone does not write it to WAL again.
func (s *Shop) novel() string {
	var b strings.Builder
	for b.Len() < 16<<10 {
		b.WriteString(pick(s.rng, words) + " ")
	}
	return strings.TrimSpace(b.String())
}

func (s *Shop) update(ctx context.Context, why *occasion, sql string, args ...any) error {
	return s.transact(ctx, why, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	})
}

// transact says why, then does it: the message is all that the bridge asks of
// an application, and only where it wants its reasons kept.
func (s *Shop) transact(ctx context.Context, why *occasion, do func(pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		if why != nil {
			message, err := json.Marshal(map[string]string{"reason": why.reason, "actor": why.actor})
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "select pg_logical_emit_message(true, 'backstory.context', $1::text)", string(message)); err != nil {
				return err
			}
		}
		return do(tx)
	})
	switch {
	case err == nil, overtaken(err):
		return nil
	}
	return fmt.Errorf("shop: %w", err)
}

// overtaken reports whether somebody else changed the table under the shop, as
// who tries out the demo may: the row is gone, or its key is taken.
func overtaken(err error) bool {
	const uniqueViolation = "23505"
	var pg *pgconn.PgError
	return errors.Is(err, pgx.ErrNoRows) || errors.As(err, &pg) && pg.Code == uniqueViolation
}

func pick[T any](rng *rand.Rand, from []T) T { return from[rng.IntN(len(from))] }
