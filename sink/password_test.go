package sink

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go/protocol/metadata"

	"backstory/internal/testenv"
)

// The password file is read again for each connection. A wrong password is final at
// the start only: later it is tried again, until the right one is there.
func TestPasswordFileIsReadAgain(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t, testenv.KafkaTLS(false), testenv.KafkaSASL("PLAIN", "plain", "right-1"),
		testenv.KafkaSASL("SCRAM-SHA-256", "scram-sha-256", "right-1"), testenv.KafkaSASL("SCRAM-SHA-512", "scram-sha-512", "right-1"))
	for _, mechanism := range []string{"plain", "scram-sha-256", "scram-sha-512"} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "password")
			write := func(password string) {
				t.Helper()
				if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cfg := DefaultConfig()
			cfg.Brokers = cluster.SecuredBrokers()
			cfg.TLS.CAFile = cluster.Security().CAFile
			cfg.SASL = SASLConfig{Mechanism: mechanism, Username: mechanism, PasswordFile: file}
			ask := func(c *client) error {
				c.refresh() // the following request makes a connection
				_, err := c.roundTrip(t.Context(), nil, &metadata.Request{})
				return err
			}
			open := func() *client {
				t.Helper()
				c, err := newClient(cfg, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(c.close)
				return c
			}
			write("wrong-0")
			if err := ask(open()); err == nil || !lasts(err) {
				t.Errorf("a wrong password at the start: got %v, want one that lasts", err)
			}
			write("right-1")
			c := open()
			if err := ask(c); err != nil {
				t.Fatal(err)
			}
			for name, broken := range map[string]func(){
				"changed at the broker": func() { write("wrong-2") },
				"empty":                 func() { write("") },
				"away":                  func() { _ = os.Remove(file) },
			} {
				broken()
				switch err := ask(c); {
				case err == nil || lasts(err):
					t.Errorf("%s: got %v, want an error to try again", name, err)
				case strings.Contains(err.Error(), "wrong-2"):
					t.Errorf("%s: %v has the password", name, err)
				}
				write("right-1")
				if err := ask(c); err != nil {
					t.Errorf("%s, then right: %v", name, err)
				}
			}
		})
	}
}
