package testenv

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"backstory/internal/cache"
)

// oldestJava is the oldest major version that runs a broker of Kafka 4.
const oldestJava = 17

// fetches is how many jars are downloaded at a time.
const fetches = 6

// javaRuntime runs Kafka's classes.
type javaRuntime struct {
	java      string // path of the program
	id        string // changes with the Java and with the jars
	classpath string
}

var javaVersion = regexp.MustCompile(`(?:JAVA_VERSION=|version )"(\d+)[^"]*"`)

// findJava looks in JAVA_HOME and PATH, and fetches the jars into the cache.
func findJava(ctx context.Context, c *cache.Cache) (*javaRuntime, error) {
	java, err := javaProgram()
	if err != nil {
		return nil, fmt.Errorf("%w; install Java %d or newer (Debian: default-jre-headless) or set JAVA_HOME", err, oldestJava)
	}
	version, err := javaRelease(ctx, java)
	if err != nil {
		return nil, err
	}
	m := javaVersion.FindStringSubmatch(version)
	if m == nil {
		return nil, fmt.Errorf("%s: unknown version %q", java, version)
	}
	if major, err := strconv.Atoi(m[1]); err != nil || major < oldestJava {
		return nil, fmt.Errorf("%s is Java %s; install Java %d or newer or set JAVA_HOME", java, m[1], oldestJava)
	}
	classpath, err := fetchKafka(ctx, c)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(java + "\n" + version + "\n" + classpath))
	return &javaRuntime{java: java, id: fmt.Sprintf("%x", sum[:6]), classpath: classpath}, nil
}

// KafkaClasspath fetches the jars of a broker and returns the Java class path of them.
func KafkaClasspath(ctx context.Context) (string, error) {
	c, err := cache.Open()
	if err != nil {
		return "", err
	}
	return fetchKafka(ctx, c)
}

func fetchKafka(ctx context.Context, c *cache.Cache) (string, error) {
	paths := make([]string, len(kafkaJars))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetches)
	for i, jar := range kafkaJars {
		g.Go(func() (err error) {
			paths[i], err = c.Artifact(ctx, jar)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	return strings.Join(paths, string(os.PathListSeparator)), nil
}

func javaProgram() (string, error) {
	path := filepath.Join(os.Getenv("JAVA_HOME"), "bin", "java")
	if os.Getenv("JAVA_HOME") == "" {
		found, err := exec.LookPath("java")
		if err != nil {
			return "", err
		}
		path = found
	}
	return filepath.EvalSymlinks(path)
}

// javaRelease reads the file that says the version, which is fifty times faster
// than asking the program; but not every package has it.
func javaRelease(ctx context.Context, java string) (string, error) {
	text, err := os.ReadFile(filepath.Join(filepath.Dir(java), "..", "release"))
	if err == nil && javaVersion.Match(text) {
		return string(text), nil
	}
	out, err := exec.CommandContext(ctx, java, "-version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s -version: %w", java, err)
	}
	return string(out), nil
}

// jvmFlags make a small broker that starts fast: most of the time to its first
// answer would otherwise go to the compiler and to loading classes.
func (j *javaRuntime) jvmFlags() []string {
	return []string{"-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
		"-Djava.awt.headless=true", "-Dlog4j2.level=WARN", "-cp", j.classpath}
}

// archive returns the class-data archive of a broker, made by a broker that is
// started and stopped once: with it a start takes a third of the time.
func (j *javaRuntime) archive(ctx context.Context, c *cache.Cache) (string, error) {
	return c.Once(ctx, "kafka/classes-"+kafkaVersion+"-"+j.id+".jsa", func(ctx context.Context, tmp string) error {
		k := &Cluster{runtime: j, jvm: []string{"-XX:ArchiveClassesAtExit=" + tmp}}
		if err := k.start(ctx, c, kafkaOptions{brokers: 1}); err != nil {
			return err
		}
		return errors.Join(k.nodes[0].stop(ctx), k.Close())
	})
}

// format returns the bootstrap.checkpoint of a new cluster: its feature levels
// and the SCRAM users ("SCRAM-SHA-512=[name=…,password=…]").
func (j *javaRuntime) format(ctx context.Context, c *cache.Cache, scram []string) (string, error) {
	sum := sha256.Sum256([]byte(strings.Join(scram, "\n")))
	name := fmt.Sprintf("kafka/bootstrap-%s-%x", kafkaVersion, sum[:6])
	dir, err := c.Once(ctx, name, func(ctx context.Context, tmp string) error {
		if err := os.Mkdir(tmp, 0o755); err != nil {
			return err
		}
		config := filepath.Join(tmp, "format.properties")
		text := "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:1\n" +
			"listeners=PLAINTEXT://127.0.0.1:2,CONTROLLER://127.0.0.1:1\ncontroller.listener.names=CONTROLLER\nlog.dirs=" + tmp + "\n"
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			return err
		}
		args := append(j.jvmFlags(), "kafka.tools.StorageTool", "format", "-t", newUUID(), "-c", config)
		for _, user := range scram {
			args = append(args, "--add-scram", user)
		}
		if out, err := exec.CommandContext(ctx, j.java, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("kafka storage format: %w: %s", err, out)
		}
		return nil
	})
	return filepath.Join(dir, "bootstrap.checkpoint"), err
}
