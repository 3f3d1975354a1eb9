package testenv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"backstory/internal/cache"
	"backstory/internal/child"
)

// Cluster is a real Kafka in KRaft mode; every node is broker and controller.
// Nodes are numbered from 0, their broker ids from 1.
type Cluster struct {
	name    string // for messages
	brokers []string
	private bool

	runtime  *javaRuntime
	jvm      []string // more flags
	scratch  *child.Scratch
	nodes    []*node
	proxies  []*Link
	security *Security
}

// KafkaOption asks for something that the shared cluster has not, and so for a
// private one.
type KafkaOption func(*kafkaOptions)

type kafkaOptions struct {
	private    bool
	brokers    int
	properties [][2]string
	jvm        []string
	proxied    bool
	tls        clientAuth
	users      []saslUser
}

// KafkaPrivate asks for a cluster that the test may stop and kill.
func KafkaPrivate() KafkaOption { return func(*kafkaOptions) {} }

// KafkaBrokers asks for a cluster of n brokers; with three or more, topics get
// three replicas by default, of which two must acknowledge.
func KafkaBrokers(n int) KafkaOption { return func(o *kafkaOptions) { o.brokers = n } }

// KafkaProperty sets a property of the brokers; the last one of a name counts.
func KafkaProperty(name, value string) KafkaOption {
	return func(o *kafkaOptions) { o.properties = append(o.properties, [2]string{name, value}) }
}

// KafkaJVM adds flags of the Java machine; they come after those that make a
// small broker which starts fast.
func KafkaJVM(flags ...string) KafkaOption {
	return func(o *kafkaOptions) { o.jvm = append(o.jvm, flags...) }
}

// KafkaProxied puts a proxy before each broker; Brokers and the metadata name
// the proxies, the brokers themselves talk past them.
func KafkaProxied() KafkaOption { return func(o *kafkaOptions) { o.proxied = true } }

// KafkaACLs denies what no ACL allows. Whoever comes by the plain listener of
// Internal is a superuser and can make ACLs.
func KafkaACLs() KafkaOption {
	return func(o *kafkaOptions) {
		o.properties = append(o.properties,
			[2]string{"authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"},
			[2]string{"super.users", "User:ANONYMOUS"})
	}
}

func kafkaFor(opts []KafkaOption) (*Cluster, error) {
	if len(opts) > 0 {
		o := kafkaOptions{brokers: 1, private: true}
		for _, opt := range opts {
			opt(&o)
		}
		return newKafka(o)
	}
	if list := os.Getenv("BACKSTORY_TEST_KAFKA"); list != "" {
		return &Cluster{name: "Kafka at " + list, brokers: strings.Split(list, ",")}, nil
	}
	return sharedServer("kafka", func() (*Cluster, error) { return newKafka(kafkaOptions{brokers: 1}) })
}

// Kafka returns a cluster: without options the one that all tests of the
// process share, else one of its own, which ends with the test. It skips the
// test where there is none (see the package comment).
func Kafka(tb TB, opts ...KafkaOption) *Cluster {
	tb.Helper()
	k, err := kafkaFor(opts)
	if err != nil {
		unavailable(tb, "kafka", err)
	}
	if k.private {
		tb.Cleanup(func() {
			if err := k.Close(); err != nil {
				tb.Errorf("stop kafka: %v", err)
			}
		})
	}
	note(tb, k.name)
	return k
}

// newKafka does not use a test's context: a shared cluster outlives the test.
func newKafka(o kafkaOptions) (*Cluster, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	c, err := cache.Open()
	if err != nil {
		return nil, err
	}
	runtime, err := findJava(ctx, c)
	if err != nil {
		return nil, err
	}
	archive, err := runtime.archive(ctx, c)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		k := &Cluster{
			name:    fmt.Sprintf("Kafka %s, %d broker(s), %s", kafkaVersion, o.brokers, runtime.java),
			private: o.private, runtime: runtime, jvm: append([]string{"-XX:SharedArchiveFile=" + archive}, o.jvm...),
		}
		err := k.start(ctx, c, o)
		if err == nil || try == 3 || !strings.Contains(err.Error(), "Address already in use") {
			return k, err
		}
	}
}

// start starts all nodes and returns when the cluster is ready. With an error
// it leaves nothing behind.
func (k *Cluster) start(ctx context.Context, c *cache.Cache, o kafkaOptions) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close())
		}
	}()
	k.scratch, err = child.NewScratch("kafka")
	if err != nil {
		return err
	}
	if err := k.secure(o); err != nil {
		return err
	}
	bootstrap, err := k.runtime.format(ctx, c, scramUsers(o.users))
	if err != nil {
		return err
	}
	if err := k.layOut(o, bootstrap); err != nil {
		return err
	}
	for _, n := range k.nodes {
		if err := n.start(k); err != nil {
			return err
		}
	}
	return k.ready(ctx)
}

// layOut makes the directories and the configuration of the nodes.
func (k *Cluster) layOut(o kafkaOptions, bootstrap string) error {
	for i := range o.brokers {
		n, err := newNode(i+1, filepath.Join(k.scratch.Dir, fmt.Sprintf("node%d", i+1)))
		if err != nil {
			return err
		}
		k.nodes = append(k.nodes, n)
		n.advertised = n.client
		if o.proxied {
			p, err := newLink(n.client)
			if err != nil {
				return fmt.Errorf("proxy to %s: %w", n.client, err)
			}
			k.proxies = append(k.proxies, p)
			n.advertised = p.Addr()
		}
		k.brokers = append(k.brokers, n.advertised)
	}
	cluster := newUUID()
	for _, n := range k.nodes {
		if err := n.format(cluster, bootstrap); err != nil {
			return err
		}
		if err := n.writeConfig(k.properties(n, o)); err != nil {
			return err
		}
	}
	return nil
}

// Close kills all nodes, of which nothing is looked at any more, and removes
// what they stored. Tests need not call it.
func (k *Cluster) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	var errs []error
	for _, n := range k.nodes {
		errs = append(errs, n.kill(ctx))
	}
	for _, p := range k.proxies {
		p.close()
	}
	k.proxies = nil
	if k.scratch != nil {
		errs = append(errs, k.scratch.Remove())
	}
	return errors.Join(errs...)
}

// Brokers are the addresses for clients: plain, or of the proxies.
func (k *Cluster) Brokers() []string { return k.brokers }

// Internal are the addresses of the plain listener that needs no proxy and no
// rights, for looking at the cluster from outside of what is tested.
func (k *Cluster) Internal() []string {
	if k.nodes == nil {
		return k.brokers
	}
	var addrs []string
	for _, n := range k.nodes {
		addrs = append(addrs, n.internal)
	}
	return addrs
}

// Security says how to come in by TLS or SASL; nil if the cluster has neither.
func (k *Cluster) Security() *Security { return k.security }

// Proxy is the proxy before node i.
func (k *Cluster) Proxy(i int) *Link { return k.proxies[i] }

// Name returns a topic name that no other test uses: "t<random>.suffix".
func (k *Cluster) Name(suffix string) string { return fmt.Sprintf("t%016x.%s", rand.Uint64(), suffix) }

// PID of node i; 0 while it does not run.
func (k *Cluster) PID(i int) int {
	if !k.nodes[i].running() {
		return 0
	}
	return k.nodes[i].proc.PID()
}

// Log is the path of the log of node i.
func (k *Cluster) Log(i int) string { return k.nodes[i].log() }

// Kill9 ends node i by SIGKILL.
func (k *Cluster) Kill9(tb TB, i int) {
	tb.Helper()
	k.do(tb, "kill", func(ctx context.Context) error { return k.KillNode(ctx, i) })
}

// Shutdown stops node i in an orderly way.
func (k *Cluster) Shutdown(tb TB, i int) {
	tb.Helper()
	k.do(tb, "stop", func(ctx context.Context) error { return k.StopNode(ctx, i) })
}

// Stop freezes node i (SIGSTOP): its connections stay open and nobody answers.
func (k *Cluster) Stop(tb TB, i int) {
	tb.Helper()
	k.do(tb, "freeze", func(context.Context) error { return k.SignalNode(i, syscall.SIGSTOP) })
}

// Cont lets a frozen node go on.
func (k *Cluster) Cont(tb TB, i int) {
	tb.Helper()
	k.do(tb, "continue", func(context.Context) error { return k.SignalNode(i, syscall.SIGCONT) })
}

// Restart starts node i again, on its ports and with its data, and waits until
// all running nodes know it.
func (k *Cluster) Restart(tb TB, i int) {
	tb.Helper()
	k.do(tb, "restart", func(ctx context.Context) error { return k.RestartNode(ctx, i) })
}

func (k *Cluster) do(tb TB, what string, f func(context.Context) error) {
	tb.Helper()
	if !k.private {
		tb.Fatal("the cluster is shared by all tests of the process: ask for a private one by testenv.KafkaPrivate()")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), startLimit)
	defer cancel()
	if err := f(ctx); err != nil {
		tb.Fatalf("%s kafka: %v", what, err)
	}
}
