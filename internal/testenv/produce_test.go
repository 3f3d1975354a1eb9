package testenv_test

import (
	"encoding/binary"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kmsg"

	"backstory/internal/testenv"
)

// broker answers each produce request with code 7 for its partition, and tells of it.
func broker(t *testing.T) (addr string, got <-chan int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	arrived := make(chan int32, 10)
	go func() { // ends when l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection
				defer c.Close()
				buf := make([]byte, 1000)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					partition := int32(binary.BigEndian.Uint32(buf[n-8:])) // before the length of no records
					arrived <- partition
					res := kmsg.NewPtrProduceResponse()
					res.Version = 8
					topic := kmsg.NewProduceResponseTopic()
					part := kmsg.NewProduceResponseTopicPartition()
					part.Partition, part.ErrorCode = partition, 7
					topic.Topic, topic.Partitions = "t", append(topic.Partitions, part)
					res.Topics = append(res.Topics, topic)
					body := res.AppendTo(make([]byte, 8))
					binary.BigEndian.PutUint32(body, uint32(len(body)-4))
					if _, err := c.Write(body); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), arrived
}

func produceRequest(partition int32) []byte {
	req := kmsg.NewPtrProduceRequest()
	req.Version = 8
	topic := kmsg.NewProduceRequestTopic()
	part := kmsg.NewProduceRequestTopicPartition()
	part.Partition = partition
	topic.Topic, topic.Partitions = "t", append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("client")).AppendRequest(nil, req, 1)
}

// Each fate is what it says: whether the broker gets the request, and its client
// the answer.
func TestJudge(t *testing.T) {
	t.Parallel()
	addr, arrived := broker(t)
	p := testenv.Proxy(t, addr)
	told := make(chan testenv.Produce, 10)
	p.Judge(
		func(_ string, partition int32) testenv.Fate { return testenv.Fate(partition) },
		func(p testenv.Produce) { told <- p })
	met := func(fate testenv.Fate, code int16) {
		t.Helper()
		select {
		case got := <-told:
			if want := (testenv.Produce{Topic: "t", Partition: int32(fate), Fate: fate, Code: code}); got != want {
				t.Errorf("told of %s", cmp.Diff(want, got))
			}
		case <-time.After(long):
			t.Fatalf("not told of a request that is %s", fate)
		}
	}
	send := func(fate testenv.Fate) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", p.Addr())
		if err == nil {
			_, err = c.Write(produceRequest(int32(fate)))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(long))
		return c
	}
	answered := func(c net.Conn) bool {
		n, err := c.Read(make([]byte, 1000))
		return n > 0 && err == nil
	}

	if !answered(send(testenv.Answered)) {
		t.Error("no answer")
	}
	met(testenv.Answered, 7)
	if answered(send(testenv.Unanswered)) {
		t.Error("an answer to a request that gets none")
	}
	met(testenv.Unanswered, 7)
	if answered(send(testenv.Lost)) {
		t.Error("an answer to a request that is lost")
	}
	met(testenv.Lost, testenv.NoAnswer)
	held := send(testenv.Held)
	met(testenv.Held, testenv.NoAnswer)
	_ = held.Close()
	for _, want := range []testenv.Fate{testenv.Answered, testenv.Unanswered} {
		if got := <-arrived; got != int32(want) {
			t.Errorf("the broker got request %d, want %d", got, want)
		}
	}
	if len(arrived) > 0 {
		t.Error("the broker got a request that is lost or held")
	}
	p.Release()
	met(testenv.Held, 7)
	if got := <-arrived; got != int32(testenv.Held) {
		t.Errorf("the broker got request %d, want %d", got, testenv.Held)
	}
}
