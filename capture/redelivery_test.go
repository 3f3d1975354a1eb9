package capture_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"backstory/capture"
	"backstory/internal/testenv"
)

// transactions are of every kind of change; server versions from which they
// work are in the second column.
var transactions = []struct {
	from int
	sql  string
}{
	{0, `INSERT INTO products SELECT i, 'p' || i, i, repeat(md5(i::text), 100) FROM generate_series(1, 30) i`},
	{0, `UPDATE products SET price = price + 1 WHERE id < 5`},
	{0, `BEGIN; INSERT INTO other VALUES (1); UPDATE products SET id = id + 100 WHERE id = 1; SAVEPOINT a; DELETE FROM products; ROLLBACK TO a; COMMIT`},
	{0, `SELECT pg_logical_emit_message(false, 'backstory.watermark', '')`},
	{0, `BEGIN; INSERT INTO other VALUES (2); COMMIT`},
	{0, `BEGIN; DELETE FROM products WHERE id = 5; SELECT pg_logical_emit_message(true, 'backstory.context', '{"reason":"sale"}'); COMMIT`},
	{0, `BEGIN; UPDATE products SET name = 'x' WHERE id = 6; ALTER TABLE products ADD stock int DEFAULT 5; UPDATE products SET stock = 6 WHERE id = 6; ALTER TABLE products DROP name; DELETE FROM products WHERE id = 6; COMMIT`},
	{0, `INSERT INTO products (id) SELECT generate_series(1000, 3000)`},
	{0, `ALTER TABLE products REPLICA IDENTITY FULL; UPDATE products SET price = 7 WHERE id = 7`},
	{11, `TRUNCATE other, products`},
	{0, `INSERT INTO products (id) VALUES (1)`},
}

// Wherever the slot was confirmed, and wherever a session starts, what comes is
// the rest, and it is the same to the byte.
func TestRedeliveryFromEveryPosition(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"10", "15", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			s := newShop(t, testenv.Postgres(t, testenv.PGVersion(version)))
			db, major := s.database(t, quiet), serverMajor(t, s)
			s.exec(t, "ALTER TABLE products ALTER image SET STORAGE EXTERNAL")
			var all []string
			ends, from := []capture.LSN{s.status(t, db).Confirmed}, []int{0} // where a session may start, and at which change
			stream := openStream(t, db, 0)
			for _, tx := range transactions {
				if tx.from > major {
					continue
				}
				s.exec(t, tx.sql)
				changes, end := upTo(t, stream, s.status(t, db).Current)
				all = append(all, changes...)
				ends, from = append(ends, end), append(from, len(all))
			}
			if err := stream.Close(); err != nil {
				t.Fatal(err)
			}
			if len(all) < 2000 {
				t.Fatalf("got %d changes", len(all))
			}
			s.exec(t, "INSERT INTO other VALUES (3)") // without it a session that starts at the last end has nothing to reach
			target := s.status(t, db).Current
			for i := range ends {
				for _, start := range []capture.LSN{0, ends[i]} { // the slot decides, then the start, with the slot behind
					stream := openStream(t, db, start)
					got, _ := upTo(t, stream, target)
					want := all[from[i]:]
					if start == 0 {
						want = all[from[max(i-1, 0)]:]
					}
					if !slices.Equal(want, got) {
						t.Fatalf("confirmed %s, started at %s (-first +again):\n%.2000s", s.status(t, db).Confirmed, start, cmp.Diff(want, got))
					}
					if start != 0 {
						stream.Confirm(start)
					}
					if err := stream.Close(); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// upTo describes the changes until the stream has reached a position, and
// returns where the slot may then be confirmed.
func upTo(t *testing.T, stream *capture.Stream, target capture.LSN) (changes []string, end capture.LSN) {
	t.Helper()
	ctx := bounded(t)
	for reached := capture.LSN(0); reached < target; {
		batch, err := stream.Next(ctx)
		if err != nil {
			t.Fatalf("at %s, before %s: %v", reached, target, err)
		}
		for i := range batch.Changes {
			changes = append(changes, describe(&batch.Changes[i]))
		}
		reached, end = batch.Reached, batch.End
	}
	return changes, end
}

// corrupter is a connection to Postgres through which the kind of the column value
// "corrupt" arrives as one that does not exist.
func corrupter(t *testing.T, target string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		wg.Wait()
	})
	from := []byte("t\x00\x00\x00\x07corrupt")
	to := []byte("?\x00\x00\x00\x07corrupt")
	pipe := func(dst, src net.Conn) {
		defer dst.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := src.Read(buf)
			if n > 0 {
				if _, err := dst.Write(bytes.ReplaceAll(buf[:n], from, to)); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
	wg.Go(func() { // ends when the listener is closed
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				return
			}
			context.AfterFunc(ctx, func() { _, _ = client.Close(), server.Close() })
			wg.Go(func() { pipe(server, client) })
			wg.Go(func() { pipe(client, server) })
		}
	})
	return l.Addr().String()
}

// A message that cannot be decoded ends the stream with its place in WAL;
// nothing from there on is confirmed, and none of it is lost.
func TestUndecodableMessageStops(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	direct := s.database(t, quiet)
	u, err := url.Parse(s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = corrupter(t, u.Host)
	corrupted := *s
	corrupted.dsn = u.String()
	stream := openStream(t, corrupted.database(t, quiet), 0)
	s.exec(t, "INSERT INTO products VALUES (1, 'fine')")
	_, fine := collect(t, stream, 1)
	stream.Confirm(fine.End)
	testenv.Eventually(t, 60*time.Second, func() error {
		if got := s.status(t, direct).Confirmed; got != fine.End {
			return fmt.Errorf("confirmed: got %s, want %s", got, fine.End)
		}
		return nil
	})

	s.exec(t, "INSERT INTO products VALUES (2, 'corrupt')")
	for err = nil; err == nil; {
		var batch *capture.Batch
		if batch, err = stream.Next(bounded(t)); err == nil && len(batch.Changes) > 0 {
			t.Fatal("a corrupt row was passed on")
		}
	}
	var restart interface{ Restart() bool }
	if errors.As(err, &restart) {
		t.Errorf("got %v, which asks for a restart", err)
	}
	if err := stream.Close(); err != nil {
		t.Fatal(err)
	}
	if got := s.status(t, direct).Confirmed; got != fine.End {
		t.Errorf("confirmed %s, want %s", got, fine.End)
	}
	again, _ := collect(t, openStream(t, direct, 0), 1)
	if want := []string{`1 insert public.products new id="2" name="corrupt" price=null image=null`}; !cmp.Equal(want, brief(again)) {
		t.Errorf("then: got %q, want %q", brief(again), want)
	}
	place, _, _ := strings.Cut(again[0], " ")
	if !strings.Contains(err.Error(), place) || !strings.Contains(err.Error(), "table public.products") {
		t.Errorf("%q does not name the place %s and the table", err, place)
	}
}

// A key too large to be stored in its row arrives with every change of the row.
func TestLargeKey(t *testing.T) {
	t.Parallel()
	s := newShop(t, testenv.Postgres(t))
	s.exec(t, `DROP TABLE products; CREATE TABLE products (id text PRIMARY KEY, n int); ALTER TABLE products ALTER id SET STORAGE EXTERNAL;
		ALTER PUBLICATION "my ""pub'" ADD TABLE products`,
		`INSERT INTO products VALUES (repeat('k', 2500), 1)`, `UPDATE products SET n = 2`, `DELETE FROM products`)
	got, _ := collect(t, openStream(t, s.database(t, quiet), 0), 3)
	key := fmt.Sprintf("%.40q", strings.Repeat("k", 40))
	want := []string{
		`1 insert public.products new id=` + key + ` n="1"`,
		`1 update public.products new id=unchanged n="2" old key id=` + key + ` n=absent`,
		`1 delete public.products old key id=` + key + ` n=absent`,
	}
	if diff := cmp.Diff(want, brief(got)); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// A renaming that was taken back, and one that the mapping follows, lose nothing
// and stop nothing, although their WAL comes again; one that happens while the
// table is streamed is refused.
func TestRenamedTables(t *testing.T) {
	t.Parallel()
	const there, back = `ALTER TABLE products RENAME TO goods`, `ALTER TABLE goods RENAME TO products`
	row := func(id int, table string) string { return fmt.Sprintf(`INSERT INTO %s VALUES (%d)`, table, id) }
	tests := []struct {
		name   string
		mapped string
		before []string // Prepare
		after  []string
		want   int // changes; those that come are all under the mapped name
		refuse string
	}{
		{name: "taken back", mapped: "products", before: []string{row(1, "products"), there, row(2, "goods"), back, row(3, "products")}, want: 3},
		{name: "followed", mapped: "goods", before: []string{row(1, "products"), there, row(2, "goods")}, want: 2},
		{name: "while it is streamed", mapped: "products", before: []string{row(1, "products")},
			after: []string{there, row(2, "goods")}, refuse: "table public.products: it was renamed to public.goods"},
		{name: "another under its name", mapped: "products", before: []string{row(1, "products")},
			after:  []string{there, `CREATE TABLE products (id int PRIMARY KEY); ALTER PUBLICATION "my ""pub'" ADD TABLE products`, row(2, "products")},
			refuse: "table public.products: another one has its name since the start"},
		{name: "swapped before", mapped: "products", before: []string{row(1, "products"), there,
			`CREATE TABLE products (id int PRIMARY KEY); ALTER PUBLICATION "my ""pub'" ADD TABLE products`, row(2, "goods"), row(3, "products")},
			after: []string{row(4, "goods"), row(5, "products")}, want: 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t, testenv.Postgres(t))
			s.exec(t, tt.before...)
			cfg := capture.DefaultConfig()
			cfg.DSN, cfg.Slot, cfg.Publication = s.dsn, s.slot, `my "pub'`
			db, err := capture.NewDatabase(cfg, []capture.TableRef{table(tt.mapped)}, quiet, nil)
			if err != nil {
				t.Fatal(err)
			}
			prepare(t, db)
			s.exec(t, tt.after...)
			stream := openStream(t, db, 0)
			if tt.refuse == "" {
				changes, _ := upTo(t, stream, s.status(t, db).Current)
				if len(changes) != tt.want || strings.Count(strings.Join(changes, "\n"), " public."+tt.mapped+" ") != tt.want {
					t.Errorf("got %d changes, want %d of %s: %q", len(changes), tt.want, tt.mapped, changes)
				}
				return
			}
			for err == nil {
				_, err = stream.Next(bounded(t))
			}
			var refusal *capture.Refusal
			if !errors.As(err, &refusal) || !strings.Contains(err.Error(), tt.refuse) {
				t.Errorf("got %v, want a refusal that says %q", err, tt.refuse)
			}
		})
	}
}
