package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// badInput is a mistake of those who set the bridge up.
type badInput struct {
	name    string
	prepare func(*rig) // what stands before: none if nil
	spoil   func(*rig) // makes the mistake
	cure    func(*rig) // does what the message says
	code    int        // how the bridge ends
	says    []string   // thing, problem, cure
	flags   []string   // of the bridge that must fail, and of the doctor

	// running: the mistake is made only once a bridge has run.
	running bool
	// first: the mistake can be made only before a bridge has run.
	first bool
	// unseen: the doctor cannot see the mistake.
	unseen bool
	// breaks: the mistake keeps the application from writing, whatever the bridge does.
	breaks bool
}

// test makes the mistake before the first start and again while a bridge that ran
// is down and the application goes on writing. Each time the bridge must say what
// is wrong and leave slot, publication and topics alone, and after the cure
// everything that was committed must arrive.
func (in badInput) test(r *rig) {
	if in.prepare != nil {
		in.prepare(r)
	}
	if !in.running {
		in.refused(r)
		if !in.breaks {
			r.exec(`UPDATE products SET stock = coalesce(stock, 0) + 1 WHERE id < 5`)
		}
		in.cure(r)
	}
	p := r.start()
	p.streaming()
	r.commit(1, 300, 60, false, 0)
	p.drained(time.Minute)
	p.stop()
	if !in.first {
		r.commit(1, 200, 60, false, 0)
		in.refused(r)
		in.cure(r)
		p = r.start()
		p.drained(time.Minute)
		p.stop()
	}
	r.compare()
}

// refused spoils the set-up and wants the bridge to end with the message, and the
// doctor to see it too.
func (in badInput) refused(r *rig) {
	r.tb.Helper()
	in.spoil(r)
	before := r.held()
	r.failsWith(in.flags, in.code, in.says...)
	if code, said := r.doctor(in.flags); code != in.code && !in.unseen {
		r.tb.Errorf("doctor: exit code %d, want %d\n%s", code, in.code, said)
	}
	if after := r.held(); after != before {
		r.tb.Errorf("the refused bridge left\n%s\nof\n%s", after, before)
	}
}

// fails wants the bridge to end by itself with an exit code and a message that
// has all of the texts in its last words.
func (r *rig) fails(code int, says ...string) {
	r.tb.Helper()
	r.failsWith(nil, code, says...)
}

func (r *rig) failsWith(flags []string, code int, says ...string) {
	r.tb.Helper()
	p := r.start(flags...)
	if got := p.wait(time.Minute); got != code {
		r.tb.Errorf("exit code %d, want %d", got, code)
	}
	_, said, ok := strings.Cut(p.stderr.String(), "\nbackstory: ")
	if !ok {
		r.tb.Fatalf("the bridge ended without a word:\n%s", p.stderr)
	}
	for _, text := range says {
		if !strings.Contains(said, text) {
			r.tb.Errorf("want %q in:\n%s", text, said)
		}
	}
	if strings.Contains(said, "hush") {
		r.tb.Errorf("the password is in:\n%s", said)
	}
}

// doctor returns the exit code of the doctor, and what it says.
func (r *rig) doctor(flags []string) (int, string) {
	r.tb.Helper()
	path, err := binary()
	if err != nil {
		r.tb.Fatal(err)
	}
	cmd := exec.CommandContext(r.tb.Context(), path, append([]string{"doctor", "--config", filepath.Join(r.dir, "backstory.yaml")}, flags...)...)
	cmd.Dir = r.dir
	said, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		r.tb.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(said)
}

// held is what a bridge that refuses must leave as it is: the slot, the tables of
// the publication, and the records of both topics.
func (r *rig) held() string {
	r.tb.Helper()
	var slot, published string
	conn := r.connect()
	err := conn.QueryRow(r.tb.Context(), `
SELECT coalesce((SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1), 'none'),
       coalesce((SELECT string_agg(tablename, ', ' ORDER BY 1) FROM pg_publication_tables WHERE pubname = 'backstory'), 'none')`,
		r.slot()).Scan(&slot, &published)
	if err != nil {
		r.tb.Fatal(err)
	}
	return fmt.Sprintf("slot: %s\npublication: %s\n%s: %d records\n%s: %d records",
		slot, published, r.topics[0], len(r.records(r.topics[0])), r.topics[1], len(r.records(r.topics[1])))
}

// slot is the name of the slot, which is that of the database.
func (r *rig) slot() string { return strings.TrimSuffix(r.topics[0], ".events") }

// records are those of a topic; none if it is not there.
func (r *rig) records(topic string) []audit.Record {
	r.tb.Helper()
	ctx, cancel := context.WithTimeout(r.tb.Context(), time.Minute)
	defer cancel()
	records, _, err := audit.ReadTopic(ctx, r.brokers, topic)
	if err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
		r.tb.Fatal(err)
	}
	return records
}

// edit replaces text in one of the bridge's files; the text must be there.
func (r *rig) edit(file, old, new string) {
	r.tb.Helper()
	path := filepath.Join(r.dir, file)
	content, err := os.ReadFile(path)
	if err != nil {
		r.tb.Fatal(err)
	}
	if !strings.Contains(string(content), old) {
		r.tb.Fatalf("%s has no %q:\n%s", file, old, content)
	}
	r.write(file, strings.ReplaceAll(string(content), old, new))
}

// edited makes a mistake and its cure of a text in a file.
func edited(file string, old, new func(*rig) string) (spoil, cure func(*rig)) {
	return func(r *rig) { r.edit(file, old(r), new(r)) }, func(r *rig) { r.edit(file, new(r), old(r)) }
}

// text is a text that is the same in every rig.
func text(s string) func(*rig) string { return func(*rig) string { return s } }

// executed is a step of SQL.
func executed(sql string) func(*rig) {
	return func(r *rig) { r.exec(strings.ReplaceAll(sql, "ROLE_NAME", r.slot())) }
}

// login lets the bridge come as a role of its own, named like the slot, with the
// rights that the README asks for.
func login(r *rig) {
	name := r.slot()
	r.exec(`CREATE ROLE ` + name + ` LOGIN REPLICATION PASSWORD 'hush'`)
	r.tb.Cleanup(func() { // before the database goes; the test's context has ended
		ctx := context.Background()
		conn, err := pgx.Connect(ctx, r.dsn)
		if err != nil {
			r.tb.Error(err)
			return
		}
		_, err = conn.Exec(ctx, `DROP OWNED BY `+name+`; DROP ROLE `+name)
		if err := errors.Join(err, conn.Close(ctx)); err != nil {
			r.tb.Error(err)
		}
	})
	r.exec(`GRANT SELECT ON products TO ` + name)
	r.edit("backstory.yaml", "postgres://postgres@", "postgres://"+name+":hush@")
}

const (
	refusedCode = 3
	usageCode   = 2
	failedCode  = 1
)

// impatient waits a second for servers. A start that finds them may take longer.
var impatient = []string{"--bridge.startup_timeout=1s"}

// dead is an address that refuses connections.
const dead = "127.0.0.1:1"

func badDSNs() []badInput {
	dsn := func(r *rig) string { return r.dsn }
	var all []badInput
	for _, in := range []struct {
		badInput
		old, new func(*rig) string
	}{
		{badInput{name: "DSN that does not parse", code: usageCode, says: []string{"source.dsn", "is no connection string", "use postgres://user:password@host:5432/database"}},
			dsn, text("postgres://u:hush@host:port/legacy")},
		{badInput{name: "DSN of no server", flags: impatient, code: failedCode, says: []string{"connect to 127.0.0.1:1", "connection refused", "startup_timeout (1s)", "check that the server is up"}},
			dsn, text("postgres://u:hush@" + dead + "/legacy?sslmode=disable")},
		{badInput{name: "DSN of no database", code: refusedCode, says: []string{"server 127.0.0.1:", `"nowhere" does not exist`, "name an existing database in source.dsn"}},
			func(r *rig) string { return "/" + r.slot() + "?" }, text("/nowhere?")},
		{badInput{name: "DSN of no role", code: refusedCode, says: []string{"server 127.0.0.1:", `"nobody" does not exist`, "check user and password in source.dsn"}},
			text("postgres://postgres@"), text("postgres://nobody:hush@")},
	} {
		in.spoil, in.cure = edited("backstory.yaml", in.old, in.new)
		all = append(all, in.badInput)
	}
	return all
}

func badRights() []badInput {
	published := func(r *rig) {
		login(r)
		r.exec(`CREATE PUBLICATION backstory FOR TABLE products`)
	}
	return []badInput{
		{name: "role that may not replicate", prepare: published, code: refusedCode,
			spoil: executed(`ALTER ROLE ROLE_NAME NOREPLICATION`), cure: executed(`ALTER ROLE ROLE_NAME REPLICATION`),
			says: []string{"role ", "replication", "cure: ALTER ROLE"}},
		{name: "role that may not read", prepare: published, code: refusedCode,
			spoil: executed(`REVOKE SELECT ON products FROM ROLE_NAME`), cure: executed(`GRANT SELECT ON products TO ROLE_NAME`),
			says: []string{"table public.products, right to read", "may not read it", `GRANT SELECT ON "public"."products" TO "`}},
		{name: "role that may not publish", prepare: login, first: true, code: refusedCode,
			spoil: func(*rig) {}, cure: executed(`CREATE PUBLICATION backstory FOR TABLE products`),
			says: []string{"table public.products, owner", "only its owner postgres may publish it", `CREATE PUBLICATION "backstory" FOR TABLE ONLY "public"."products"`}},
	}
}

func badTables() []badInput {
	return []badInput{
		{name: "no primary key", code: refusedCode,
			spoil: executed(`ALTER TABLE products DROP CONSTRAINT products_pkey`), cure: executed(`ALTER TABLE products ADD PRIMARY KEY (id)`),
			says: []string{"table public.products, primary key", "it has none", `cure: ALTER TABLE "public"."products" ADD PRIMARY KEY`}},
		{name: "replica identity nothing", code: refusedCode,
			spoil: executed(`ALTER TABLE products REPLICA IDENTITY NOTHING`), cure: executed(`ALTER TABLE products REPLICA IDENTITY DEFAULT`),
			says: []string{"table public.products, replica identity", "once published, UPDATE and DELETE fail", `cure: ALTER TABLE "public"."products" REPLICA IDENTITY DEFAULT`}},
	}
}

// published makes the owner's publication and slot, which the bridge may not touch.
func published(r *rig) {
	r.exec(`CREATE TABLE other (id int PRIMARY KEY)`)
	r.exec(`CREATE PUBLICATION backstory FOR TABLE products, other`)
	r.exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, r.slot())
	r.edit("backstory.yaml", "publication: backstory", "publication: backstory, create: false")
}

func badPublications() []badInput {
	const whole = `ALTER PUBLICATION backstory SET TABLE products, other`
	return []badInput{
		{name: "publication that lacks the table", prepare: published, code: refusedCode,
			spoil: executed(`ALTER PUBLICATION backstory DROP TABLE products`), cure: executed(`ALTER PUBLICATION backstory ADD TABLE products`),
			says: []string{"table public.products, publication", "backstory does not have it", `cure: ALTER PUBLICATION "backstory" ADD TABLE ONLY "public"."products"`}},
		{name: "publication of inserts alone", prepare: published, code: refusedCode,
			spoil: executed(`ALTER PUBLICATION backstory SET (publish = 'insert')`),
			cure:  executed(`ALTER PUBLICATION backstory SET (publish = 'insert, update, delete, truncate')`),
			says:  []string{"publication backstory", "does not publish update, delete, truncate", `cure: ALTER PUBLICATION "backstory" SET (publish = 'insert, update, delete, truncate')`}},
		{name: "publication without the key", prepare: published, code: refusedCode, breaks: true,
			spoil: executed(`ALTER PUBLICATION backstory SET TABLE products (sku, name), other`), cure: executed(whole),
			says: []string{"table public.products, publication", "its column list lacks id of the replica identity: UPDATE and DELETE fail", "ADD TABLE ONLY"}},
		{name: "publication of some rows", prepare: published, code: refusedCode, breaks: true,
			spoil: executed(`ALTER PUBLICATION backstory SET TABLE products WHERE (stock > 5), other`), cure: executed(whole),
			says: []string{"table public.products, publication", "it has a row filter", "ADD TABLE ONLY"}},
	}
}

func badMappings() []badInput {
	var all []badInput
	for _, in := range []struct {
		badInput
		old, new string
	}{
		{badInput{name: "unknown column in a rule", says: []string{"products.yaml:7:", `no field "prize"`, `did you mean "price"?`}}, "when: [price]", "when: [prize]"},
		{badInput{name: "unknown column left out", says: []string{"table public.products, omit", "no column skew", "did you mean sku?"}}, "aggregate: Product\n", "aggregate: Product\n    omit: [skew]\n"},
		{badInput{name: "unknown column in the key", says: []string{"table public.products, key", "no column it", "did you mean id?"}}, "aggregate: Product\n", "aggregate: Product\n    key: [it]\n"},
	} {
		in.code = usageCode
		in.spoil, in.cure = edited("products.yaml", text(in.old), text(in.new))
		all = append(all, in.badInput)
	}
	return all
}

// configured sets an entry of a topic's configuration.
func configured(topic int, name, value string) func(*rig) {
	return func(r *rig) {
		r.admin(func(ctx context.Context, adm *kadm.Client) error {
			res, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: name, Value: &value}}, r.topics[topic])
			for _, t := range res {
				err = errors.Join(err, t.Err)
			}
			for err == nil { // until the broker has heard of it
				var found kadm.ResourceConfigs
				if found, err = adm.DescribeTopicConfigs(ctx, r.topics[topic]); err != nil {
					break
				}
				for _, c := range found[0].Configs {
					if c.Key == name && c.MaybeValue() == value {
						return nil
					}
				}
			}
			return err
		})
	}
}

// admin changes something in Kafka from outside.
func (r *rig) admin(change func(context.Context, *kadm.Client) error) {
	r.tb.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(r.brokers...))
	if err != nil {
		r.tb.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(r.tb.Context(), 30*time.Second)
	defer cancel()
	if err := change(ctx, kadm.NewClient(client)); err != nil {
		r.tb.Fatal(err)
	}
}

func badTopics() []badInput {
	const hundredYears = "3155760000000"
	spoil, cure := edited("backstory.yaml",
		func(r *rig) string { return "brokers: [" + r.brokers[0] + "]" }, text("brokers: ["+dead+"]"))
	partitions := badInput{name: "topics with other partitions", running: true, code: refusedCode,
		says: []string{".events: it has 6 partitions", "says 3", "put topics.partitions of the mapping back"}}
	partitions.spoil, partitions.cure = edited("products.yaml", text("partitions: 6"), text("partitions: 3"))
	return []badInput{
		{name: "Kafka that is not there", code: failedCode, spoil: spoil, cure: cure, flags: impatient,
			says: []string{"find the topics", "dial tcp 127.0.0.1:1: connect: connection refused", "bridge.startup_timeout (1s)", "check kafka.brokers"}},
		partitions,
		{name: "events topic that is compacted", running: true, code: refusedCode,
			spoil: configured(0, "cleanup.policy", "compact"), cure: configured(0, "cleanup.policy", "delete"),
			says: []string{".events", "cleanup.policy is compact", "kafka-configs", "--add-config cleanup.policy=delete"}},
		{name: "events topic that forgets", running: true, code: refusedCode,
			spoil: configured(0, "retention.ms", "604800000"), cure: configured(0, "retention.ms", "-1"),
			says: []string{".events", "retention.ms is 604800000", "--add-config retention.ms=-1"}},
		{name: "latest topic that is not compacted", running: true, code: refusedCode,
			spoil: configured(1, "cleanup.policy", "delete"), cure: configured(1, "cleanup.policy", "compact"),
			says: []string{".latest", "cleanup.policy is delete", "--add-config cleanup.policy=compact"}},
		{name: "latest topic that forgets tombstones", running: true, code: refusedCode,
			spoil: configured(1, "delete.retention.ms", "86400000"), cure: configured(1, "delete.retention.ms", hundredYears),
			says: []string{".latest", "delete.retention.ms is 86400000", "--add-config delete.retention.ms=" + hundredYears}},
	}
}

// A mistake in the set-up is named with its cure; nothing is left behind or
// confirmed, the application goes on writing, and after the cure all is there.
func TestBadInput(t *testing.T) {
	t.Parallel()
	pg, kafka := testenv.Postgres(t), testenv.Kafka(t)
	for _, group := range [][]badInput{badDSNs(), badRights(), badTables(), badPublications(), badMappings(), badTopics()} {
		for _, in := range group {
			t.Run(in.name, func(t *testing.T) {
				t.Parallel()
				in.test(newRig(t, pg, kafka.Brokers(), 20))
			})
		}
	}
}

// A server that does not log enough. One that has a slot does not even start so.
func TestBadInputWALLevel(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t, testenv.Fresh())
	level := func(to string) func(*rig) {
		return func(r *rig) {
			pg.Exec(t, pg.DSN("postgres"), "ALTER SYSTEM SET wal_level = "+to)
			pg.Restart(t)
		}
	}
	badInput{first: true, code: refusedCode, spoil: level("replica"), cure: level("logical"),
		says: []string{"wal_level: replica", "cure: ALTER SYSTEM SET wal_level = 'logical'; then restart the server"}}.
		test(newRig(t, pg, testenv.Kafka(t).Brokers(), 20))
}

// rights are those that the README asks for, for a user named ann.
func rights(r *rig, operations ...kadm.ACLOperation) *kadm.ACLBuilder {
	return kadm.NewACLs().ResourcePatternType(kadm.ACLPatternPrefixed).Topics(r.slot() + ".").
		Operations(operations...).Allow("User:ann").AllowHosts()
}

func session(operations ...kadm.ACLOperation) *kadm.ACLBuilder {
	return kadm.NewACLs().ResourcePatternType(kadm.ACLPatternPrefixed).TransactionalIDs("backstory-").
		Operations(operations...).Allow("User:ann").AllowHosts()
}

func (r *rig) grant(acls *kadm.ACLBuilder) {
	r.tb.Helper()
	r.admin(func(ctx context.Context, adm *kadm.Client) error {
		_, err := adm.CreateACLs(ctx, acls)
		return err
	})
	r.acls(acls, func(n int) bool { return n > 0 })
}

func (r *rig) revoke(acls *kadm.ACLBuilder) {
	r.tb.Helper()
	r.admin(func(ctx context.Context, adm *kadm.Client) error {
		_, err := adm.DeleteACLs(ctx, acls)
		return err
	})
	r.acls(acls, func(n int) bool { return n == 0 })
}

// acls waits until the broker has heard of a change.
func (r *rig) acls(acls *kadm.ACLBuilder, done func(n int) bool) {
	r.tb.Helper()
	r.admin(func(ctx context.Context, adm *kadm.Client) error {
		for {
			results, err := adm.DescribeACLs(ctx, acls)
			if err != nil {
				return err
			}
			n := 0
			for _, result := range results {
				n += len(result.Described)
			}
			if done(n) {
				return nil
			}
		}
	})
}

// A Kafka that does not let the bridge in, or not far enough. What the README
// lists is enough.
func TestBadInputKafkaRights(t *testing.T) {
	t.Parallel()
	kafka := testenv.Kafka(t, testenv.KafkaACLs(), testenv.KafkaSASL("SCRAM-SHA-512", "ann", "hush"))
	pg := testenv.Postgres(t)
	main := []kadm.ACLOperation{kadm.OpRead, kadm.OpWrite, kadm.OpDescribe, kadm.OpDescribeConfigs}
	secured := func(r *rig) {
		r.edit("backstory.yaml", fmt.Sprintf("brokers: [%s]", strings.Join(r.brokers, ", ")), fmt.Sprintf(
			"brokers: [%s], sasl: {mechanism: scram-sha-512, username: ann, password: hush}", strings.Join(kafka.SecuredBrokers(), ", ")))
		r.grant(rights(r, append(main, kadm.OpCreate)...))
		r.grant(session(kadm.OpWrite, kadm.OpDescribe))
	}
	spoil, cure := edited("backstory.yaml", text("password: hush"), text("password: hushed"))
	for _, in := range []badInput{
		{name: "wrong password", prepare: secured, code: refusedCode, spoil: spoil, cure: cure,
			says: []string{"find the topics", "refuses it", "check sasl.mechanism, sasl.username and the password"}},
		{name: "topics that may not be made", prepare: secured, first: true, unseen: true, code: refusedCode,
			spoil: func(r *rig) { r.revoke(rights(r, kadm.OpCreate)) }, cure: func(r *rig) { r.grant(rights(r, kadm.OpCreate)) },
			says: []string{"topic ", "Topic Authorization Failed", "and Create if the topic is not there; or make it: kafka-topics --create --topic "}},
		{name: "topics that may not be written", prepare: secured, running: true, code: refusedCode,
			spoil: func(r *rig) { r.revoke(rights(r, kadm.OpWrite)) }, cure: func(r *rig) { r.grant(rights(r, kadm.OpWrite)) },
			says: []string{"topic ", "grant Describe, Write, Read and DescribeConfigs on the topic"}},
		{name: "topics that may not be read", prepare: secured, running: true, code: refusedCode,
			spoil: func(r *rig) { r.revoke(rights(r, kadm.OpRead)) }, cure: func(r *rig) { r.grant(rights(r, kadm.OpRead)) },
			says: []string{"topic", "grant Describe, Write, Read and DescribeConfigs on the topic"}},
		{name: "topics that may not be described", prepare: secured, running: true, code: refusedCode,
			spoil: func(r *rig) { r.revoke(rights(r, main...)) }, cure: func(r *rig) { r.grant(rights(r, main...)) },
			says: []string{"topic ", "grant Describe, Write, Read and DescribeConfigs on the topic"}},
		{name: "session that may not be opened", prepare: secured, code: refusedCode,
			spoil: func(r *rig) { r.revoke(session(kadm.OpWrite, kadm.OpDescribe)) }, cure: func(r *rig) { r.grant(session(kadm.OpWrite, kadm.OpDescribe)) },
			says: []string{"transactional id", "grant Write and Describe on the transactional id"}},
	} {
		t.Run(in.name, func(t *testing.T) { in.test(newRig(t, pg, kafka.Internal(), 20)) })
	}
}
