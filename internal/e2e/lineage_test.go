package e2e_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// stocks folds the latest topic: the stock of each product.
func (r *rig) stocks() map[string]int {
	r.tb.Helper()
	records, _, err := audit.ReadTopic(r.tb.Context(), r.brokers, r.topics[1])
	if err != nil {
		r.tb.Fatal(err)
	}
	stocks := map[string]int{}
	for _, record := range records {
		if len(record.Value) == 0 {
			delete(stocks, record.Key)
			continue
		}
		var state struct{ Stock int }
		if err := json.Unmarshal(record.Value, &state); err != nil {
			r.tb.Fatal(err)
		}
		stocks[record.Key] = state.Stock
	}
	return stocks
}

// What the stream missed while the table was not published, or was another one,
// is found at the next start, although slot, publication and table are there as
// if nothing had been.
func TestGapsAreRepaired(t *testing.T) {
	t.Parallel()
	const changes = `UPDATE products SET stock = 4711 WHERE id = 2; DELETE FROM products WHERE id = 3;`
	tests := []struct{ name, sql string }{
		{"table out of the publication and in again", `ALTER PUBLICATION backstory DROP TABLE ONLY products; ` + changes +
			`ALTER PUBLICATION backstory ADD TABLE ONLY products`},
		{"operations off and on again", `ALTER PUBLICATION backstory SET (publish = 'insert'); ` + changes +
			`ALTER PUBLICATION backstory SET (publish = 'insert, update, delete, truncate')`},
		{"another table under the same name", `CREATE TABLE fresh (LIKE products INCLUDING ALL); INSERT INTO fresh SELECT * FROM products;
			UPDATE fresh SET stock = 4711 WHERE id = 2; DELETE FROM fresh WHERE id = 3;
			ALTER TABLE products RENAME TO old; ALTER TABLE fresh RENAME TO products; DELETE FROM old WHERE id = 4`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 20)
			p := r.start()
			p.drained(time.Minute)
			p.stop()
			want := r.stocks()
			if len(want) != 20 {
				t.Fatalf("imported: got %d products, want 20", len(want))
			}
			r.exec(tt.sql)
			want["2"] = 4711
			delete(want, "3")
			p = r.start()
			p.drained(time.Minute)
			p.stop()
			if got := r.stocks(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("latest: got %v, want %v", got, want)
			}
		})
	}
}
