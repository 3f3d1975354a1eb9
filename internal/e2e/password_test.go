package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"backstory/internal/testenv"
)

// The password of the bridge's role is changed while it streams, and its sessions are
// ended. Until the file has the new one the bridge tries again, and says so; then it
// goes on. At a start a wrong one is refused.
func TestPasswordRotated(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t, testenv.Fresh())
	r := newRig(t, pg, testenv.KFake(t).ListenAddrs(), 20)
	r.exec(`CREATE ROLE rot SUPERUSER LOGIN REPLICATION PASSWORD 'first-1'`)
	r.demandPassword("rot")
	r.write("dsn", r.as("rot", "first-1"))
	r.write("backstory.yaml", fmt.Sprintf(`
source: {dsn_file: dsn, slot: %s, publication: backstory}
kafka: {brokers: [%s]}
state: {dir: state}
http: {listen: %q}
mapping: products.yaml
`, r.slot(), strings.Join(r.brokers, ", "), r.http))
	p := r.start()
	p.streaming()
	p.drained(time.Minute)

	r.exec(`ALTER ROLE rot PASSWORD 'second-2'`)
	r.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rot'`)
	testenv.Eventually(t, time.Minute, func() error {
		if err := p.alive(); err != nil {
			t.Fatal(err)
		}
		if text := p.readiness(); !strings.Contains(text, "reconnecting: ") || !strings.Contains(text, "password authentication failed") {
			return fmt.Errorf("/readyz says %q", text)
		}
		return nil
	})
	r.write("dsn", r.as("rot", "second-2"))
	r.exec(`UPDATE products SET price = price + 1`)
	p.streaming()
	p.drained(time.Minute)
	p.stop()
	r.compare()
	if said := p.said(); strings.Contains(said, "first-1") || strings.Contains(said, "second-2") {
		t.Error("the log has a password")
	}

	r.write("dsn", r.as("rot", "first-1"))
	if code := r.start().wait(time.Minute); code != 3 {
		t.Errorf("a start with a wrong password: got exit code %d, want 3", code)
	}
}

// demandPassword makes the server ask a role for its password.
func (r *rig) demandPassword(role string) {
	r.tb.Helper()
	var file string
	if err := r.connect().QueryRow(r.tb.Context(), `SHOW hba_file`).Scan(&file); err != nil {
		r.tb.Fatal(err)
	}
	rules, err := os.ReadFile(file)
	if err != nil {
		r.tb.Fatal(err)
	}
	ours := fmt.Sprintf("host all %[1]s 127.0.0.1/32 scram-sha-256\nhost replication %[1]s 127.0.0.1/32 scram-sha-256\n", role)
	if err := os.WriteFile(file, append([]byte(ours), rules...), 0o600); err != nil {
		r.tb.Fatal(err)
	}
	r.exec(`SELECT pg_reload_conf()`)
	testenv.Eventually(r.tb, time.Minute, func() error {
		conn, err := pgx.Connect(context.Background(), r.as(role, "wrong"))
		if err == nil {
			_ = conn.Close(context.Background())
			return errors.New("the server does not ask for the password yet")
		}
		return nil
	})
}

// as is the DSN of a role with its password.
func (r *rig) as(role, password string) string {
	r.tb.Helper()
	u, err := url.Parse(r.dsn)
	if err != nil {
		r.tb.Fatal(err)
	}
	u.User = url.UserPassword(role, password)
	return u.String()
}

// readiness is what /readyz says.
func (p *process) readiness() string {
	ctx, cancel := context.WithTimeout(p.r.tb.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.r.http+"/readyz", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
