package testenv

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"backstory/internal/child"
)

// node is one broker and controller. Its addresses are host:port and stay the
// same for its life.
type node struct {
	id         int
	dir        string
	client     string // where it listens for clients
	advertised string // where clients are sent: client, or the proxy before it
	internal   string // brokers among themselves, and testenv
	controller string
	secured    string // TLS or SASL
	proc       *child.Process
}

func newNode(id int, dir string) (*node, error) {
	n := &node{id: id, dir: dir}
	addrs := []*string{&n.client, &n.internal, &n.controller, &n.secured}
	ports, err := child.FreePorts(len(addrs))
	if err != nil {
		return nil, err
	}
	for i, addr := range addrs {
		*addr = "127.0.0.1:" + strconv.Itoa(ports[i])
	}
	return n, nil
}

// newUUID is a random id in Kafka's spelling. Kafka reads one that begins with
// a dash as an option, so there is none.
func newUUID() string {
	var b [16]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		if id := base64.RawURLEncoding.EncodeToString(b[:]); id[0] != '-' {
			return id
		}
	}
}

// format does what Kafka's storage tool does: an id for the directory, and the
// first records of the metadata log.
func (n *node) format(cluster, bootstrap string) error {
	data := filepath.Join(n.dir, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return fmt.Errorf("format node %d: %w", n.id, err)
	}
	meta := fmt.Sprintf("version=1\ncluster.id=%s\nnode.id=%d\ndirectory.id=%s\n", cluster, n.id, newUUID())
	first, err := os.ReadFile(bootstrap)
	if err != nil {
		return fmt.Errorf("format node %d: %w", n.id, err)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(data, "meta.properties"), []byte(meta), 0o644),
		os.WriteFile(filepath.Join(data, "bootstrap.checkpoint"), first, 0o644),
	); err != nil {
		return fmt.Errorf("format node %d: %w", n.id, err)
	}
	return nil
}

func (n *node) writeConfig(properties [][2]string) error {
	var b strings.Builder
	for _, p := range properties {
		b.WriteString(p[0] + "=" + strings.ReplaceAll(p[1], `\`, `\\`) + "\n")
	}
	if err := os.WriteFile(filepath.Join(n.dir, "server.properties"), []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("configure node %d: %w", n.id, err)
	}
	return nil
}

func (n *node) start(k *Cluster) error {
	log, err := os.OpenFile(n.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start node %d: %w", n.id, err)
	}
	defer log.Close() // the node has its own copy
	args := append(append(k.runtime.jvmFlags(), k.jvm...), "kafka.Kafka", "server.properties")
	cmd := exec.Command(k.runtime.java, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = n.dir, log, log
	n.proc, err = child.Start(cmd, nil, syscall.SIGKILL)
	if err != nil {
		return fmt.Errorf("start node %d: %w", n.id, err)
	}
	return nil
}

func (n *node) log() string { return filepath.Join(n.dir, "server.log") }

func (n *node) running() bool { return n.proc != nil }

// ended returns an error that says why the node ended; nil while it runs.
func (n *node) ended() error {
	select {
	case <-n.proc.Done():
		return fmt.Errorf("node %d ended (%w): %s", n.id, n.proc.Err(), n.lastWords())
	default:
		return nil
	}
}

// lastWords is the end of the log.
func (n *node) lastWords() string {
	const limit = 2000
	f, err := os.Open(n.log())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil && end > limit {
		_, err = f.Seek(end-limit, io.SeekStart)
		if err != nil {
			return err.Error()
		}
	} else if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err.Error()
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

func (n *node) stop(ctx context.Context) error {
	if n.proc == nil {
		return nil
	}
	if err := n.proc.Signal(syscall.SIGCONT); err != nil {
		return err
	}
	err := n.proc.Stop(ctx, syscall.SIGTERM)
	n.proc = nil
	return err
}

func (n *node) kill(ctx context.Context) error {
	if n.proc == nil {
		return nil
	}
	err := n.proc.Kill(ctx)
	n.proc = nil
	return err
}

func (n *node) signal(sig os.Signal) error {
	if n.proc == nil {
		return fmt.Errorf("node %d does not run", n.id)
	}
	return n.proc.Signal(sig)
}
