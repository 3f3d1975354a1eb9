package main

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"backstory/internal/testenv"
)

// inRecovery makes a private server one that recovers for ever, as a standby does.
func inRecovery(t *testing.T, pg *testenv.PG) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pg.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	var data string
	if err := conn.QueryRow(t.Context(), `SHOW data_directory`).Scan(&data); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close(t.Context())
	pg.Stop(t)
	if err := os.WriteFile(filepath.Join(data, "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	pg.Restart(t)
}

// A standby is a server that is away: the doctor says so at once, a start waits for
// startup_timeout, and neither speaks of a slot.
func TestStandbyIsToldOf(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t, testenv.Fresh(), testenv.PGVersion("15"))
	pg.Exec(t, pg.DSN("postgres"), `CREATE TABLE products (id int PRIMARY KEY)`)
	inRecovery(t, pg)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "map.yaml"), "tables: [{table: products, aggregate: Product}]")
	u, err := url.Parse(pg.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	config := func(dsn string) string {
		file := filepath.Join(t.TempDir(), "backstory.yaml")
		write(t, file, fmt.Sprintf("source: {dsn: %q}\nkafka: {brokers: [%s]}\nstate: {dir: %s}\nhttp: {listen: ''}\nbridge: {startup_timeout: 2s}\nmapping: %s\n",
			dsn, testenv.KFake(t).ListenAddrs()[0], filepath.Join(t.TempDir(), "state"), filepath.Join(dir, "map.yaml")))
		return file
	}
	const cure = "name the primary in source.dsn"
	alone := config(u.String())
	for _, tt := range []struct {
		args []string
		want []string
		exit int
	}{
		{[]string{"doctor", "-c", alone}, []string{"postgres: connect to " + u.Host, u.Host + " is a standby", "→ " + cure}, exitFailed},
		{[]string{"run", "-c", alone}, []string{"startup_timeout", u.Host + " is a standby", cure}, exitFailed},
		{[]string{"doctor", "-c", config(u.String() + "&target_session_attrs=any")}, []string{"server role: it is a standby, which cannot decode WAL before Postgres 16"}, exitRefused},
	} {
		code, out := outcome(t, dir, tt.args...)
		if code != tt.exit {
			t.Errorf("%s: exit code %d, want %d\n%s", tt.args, code, tt.exit, out)
		}
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: got %s, want %q", tt.args, out, want)
			}
		}
		if strings.Contains(out, "it is gone") || strings.Contains(out, "dropped") || strings.Contains(out, "restored") {
			t.Errorf("%s: speaks of a lost slot: %s", tt.args, out)
		}
	}
}
