package sink_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"backstory/internal/testenv"
	"backstory/sink"
	"backstory/transform"
)

// TestSecurity comes in by TLS with a client certificate and by each mechanism
// of SASL, and says what is wrong where it does not come in.
func TestSecurity(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t, testenv.KafkaTLS(true),
		testenv.KafkaSASL("PLAIN", "plainuser", "plainsecret"),
		testenv.KafkaSASL("SCRAM-SHA-256", "scram256", "secret256"),
		testenv.KafkaSASL("SCRAM-SHA-512", "scram512", "secret512"))
	s := cluster.Security()
	secured := func(mechanism, user, password string) sink.Config {
		cfg := config(cluster.SecuredBrokers())
		cfg.TLS = sink.TLSConfig{CAFile: s.CAFile, CertFile: s.CertFile, KeyFile: s.KeyFile}
		cfg.SASL = sink.SASLConfig{Mechanism: mechanism, Username: user, Password: password}
		return cfg
	}
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("secret512\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fromFile := secured("scram-sha-512", "scram512", "")
	fromFile.SASL.PasswordFile = file
	for name, cfg := range map[string]sink.Config{
		"plain": secured("plain", "plainuser", "plainsecret"), "scram-sha-256": secured("scram-sha-256", "scram256", "secret256"),
		"scram-sha-512": secured("scram-sha-512", "scram512", "secret512"), "password file": fromFile,
	} {
		t.Run(name, func(t *testing.T) {
			topic := cluster.Name("secured")
			m := shop(topic, 2)
			p := fenced(t, cfg, m, topic)
			publish(t, p, newMaker(m).many(20))
			n := 0
			if _, err := p.Fold(within(t), m.Tables[0], transform.Events, []int64{0, 0}, func(*transform.Stored) error { n++; return nil }); err != nil || n != 20 {
				t.Errorf("got %d events, %v, want 20", n, err)
			}
		})
	}
	other := secured("plain", "plainuser", "plainsecret")
	other.TLS.CAFile = strangeAuthority(t)
	name := secured("plain", "plainuser", "plainsecret")
	name.TLS.ServerName = "elsewhere.example"
	none := secured("plain", "plainuser", "plainsecret")
	none.TLS.CertFile, none.TLS.KeyFile = "", ""
	unencrypted := secured("plain", "plainuser", "plainsecret")
	unencrypted.TLS = sink.TLSConfig{}
	for _, tt := range []struct {
		name string
		cfg  sink.Config
		want ending
		says []string
	}{
		{"wrong password", secured("scram-sha-512", "scram512", "wrong"), refused, []string{"sasl.mechanism", "password"}},
		{"wrong plain password", secured("plain", "plainuser", "wrong"), refused, []string{"sasl.mechanism", "password"}},
		{"unknown user", secured("scram-sha-256", "nobody", "secret256"), refused, []string{"sasl.username"}},
		{"mechanism that is not there", secured("scram-sha-256", "scram512", "secret512"), refused, []string{"sasl.mechanism"}},
		{"another authority", other, refused, []string{"tls.ca_file"}},
		{"another name", name, refused, []string{"tls.server_name", "elsewhere.example"}},
		{"no client certificate", none, waiting, []string{"tls: bad certificate"}},
		{"no TLS", unencrypted, waiting, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			limit := testLimit
			if tt.want == waiting {
				limit = 10 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			_, err := sink.Open(ctx, tt.cfg, shop(cluster.Name("outside"), 1), identity, "outside", quiet(), registry())
			if got := endingOf(err); got != tt.want {
				t.Fatalf("got %q (%v), want %q", got, err, tt.want)
			}
			for _, part := range tt.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			for _, secret := range []string{"plainsecret", "secret256", "secret512"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q gives a password away", err)
				}
			}
		})
	}
}

// strangeAuthority is a certificate file that no broker's certificate is of.
func strangeAuthority(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "strange.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// right is one operation on one kind of thing that a bridge is allowed.
type right struct {
	on  string // "topic", "id", "cluster"
	ops kadm.ACLOperation
}

// leastRights are those that DESIGN.md names, for topics that are there.
var leastRights = []right{
	{"topic", kadm.OpDescribe}, {"topic", kadm.OpWrite}, {"topic", kadm.OpRead}, {"topic", kadm.OpDescribeConfigs},
	{"id", kadm.OpWrite}, {"id", kadm.OpDescribe},
}

// allow gives a user rights on the topics and transactional ids with a prefix.
func allow(t *testing.T, brokers []string, user, prefix string, rights []right) {
	t.Helper()
	admin(t, brokers, func(ctx context.Context, cl *kgo.Client) {
		for _, r := range rights {
			acl := kadm.NewACLs().Allow("User:" + user).AllowHosts("*").Operations(r.ops)
			switch r.on {
			case "topic":
				acl = acl.Topics(prefix).ResourcePatternType(kadm.ACLPatternPrefixed)
			case "id":
				acl = acl.TransactionalIDs(prefix).ResourcePatternType(kadm.ACLPatternPrefixed)
			default:
				acl = acl.Clusters().ResourcePatternType(kadm.ACLPatternLiteral)
			}
			made, err := kadm.NewClient(cl).CreateACLs(ctx, acl)
			if err != nil {
				t.Fatalf("create ACL: %v", err)
			}
			for _, m := range made {
				if m.Err != nil {
					t.Fatalf("create ACL: %v", m.Err)
				}
			}
		}
	})
}

// TestRights goes through a bridge's life with the least rights, and without each.
func TestRights(t *testing.T) {
	t.Parallel()
	const users = 10
	opts := []testenv.KafkaOption{testenv.KafkaACLs(), testenv.KafkaTLS(false)}
	name := func(i int) string { return "user" + string(rune('a'+i)) }
	for i := range users {
		opts = append(opts, testenv.KafkaSASL("PLAIN", name(i), "secret"))
	}
	cluster := testenv.Kafka(t, opts...)
	next := 0
	// live opens, fences, publishes, renews and reads as a new user.
	live := func(t *testing.T, topicsThere bool, rights ...right) error {
		t.Helper()
		user := name(next)
		next++
		prefix := cluster.Name(user)
		allow(t, cluster.Internal(), user, prefix, rights)
		m := shop(prefix, 1)
		if topicsThere {
			if err := open(t, config(cluster.Internal()), m, prefix).Close(); err != nil {
				t.Fatal(err)
			}
		}
		cfg := config(cluster.SecuredBrokers())
		cfg.TransactionalID = prefix
		cfg.TLS.CAFile = cluster.Security().CAFile
		cfg.SASL = sink.SASLConfig{Mechanism: "plain", Username: user, Password: "secret"}
		p, err := sink.Open(within(t), cfg, m, identity, prefix, quiet(), registry())
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = p.Close() })
		if err := p.Fence(within(t)); err != nil {
			return err
		}
		if _, err := tryPublish(within(t), p, newMaker(m).many(5)); err != nil {
			return err
		}
		if err := p.Renew(within(t)); err != nil {
			return err
		}
		_, err = p.Fold(within(t), m.Tables[0], transform.Latest, []int64{0}, func(*transform.Stored) error { return nil })
		return err
	}
	t.Run("least", func(t *testing.T) {
		if err := live(t, true, leastRights...); err != nil {
			t.Errorf("with the least rights: %v", err)
		}
	})
	t.Run("with Create", func(t *testing.T) {
		if err := live(t, false, append([]right{{"topic", kadm.OpCreate}}, leastRights...)...); err != nil {
			t.Errorf("with the right to create topics: %v", err)
		}
	})
	t.Run("without Create", func(t *testing.T) {
		err := live(t, false, leastRights...)
		if !isRefused(err) || !strings.Contains(err.Error(), "kafka-topics --create --topic") {
			t.Errorf("got %v, want a Refusal with the command", err)
		}
	})
	for i, missing := range leastRights {
		t.Run("without "+missing.on+" "+missing.ops.String(), func(t *testing.T) {
			rights := append(append([]right{}, leastRights[:i]...), leastRights[i+1:]...)
			err := live(t, true, rights...)
			switch {
			case missing.ops == kadm.OpDescribe:
				// Write and Read imply it.
				if err != nil {
					t.Errorf("got %v, want none", err)
				}
			case !isRefused(err) || !strings.Contains(err.Error(), "grant "):
				t.Errorf("got %v, want a Refusal that says what to grant", err)
			}
		})
	}
}

// TestUnreadableFiles takes a file that is there and cannot be read for a wrong
// configuration, not for a server that cannot be reached.
func TestUnreadableFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, wrong := range map[string]func(*sink.Config){
		"tls.ca_file":   func(c *sink.Config) { c.TLS.CAFile = dir },
		"tls.cert_file": func(c *sink.Config) { c.TLS.CertFile, c.TLS.KeyFile = dir, dir },
		"sasl.password_file": func(c *sink.Config) {
			c.SASL = sink.SASLConfig{Mechanism: "plain", Username: "ann", PasswordFile: dir}
		},
	} {
		cfg := config([]string{"127.0.0.1:1"})
		wrong(&cfg)
		_, err := sink.Open(within(t), cfg, shop("product", 1), identity, "slot", quiet(), registry())
		var usage interface{ Usage() bool }
		if !errors.As(err, &usage) || !usage.Usage() || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want a wrong configuration that names %s", err, name)
		}
	}
}
