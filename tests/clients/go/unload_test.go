package clients

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
)

// The client takes commands and messages from two queues, as they come (`run` in its connection.go): the PRODUCER that follows on the end
// of its producer passes messages that were queued before it, which then come to the new one, before those that the server has left out.
// Taken there, they make duplicates of these, as on Apache Pulsar (4.0.8: in two runs of three).
func TestMessagesOfASlowClientSurviveUnloading(t *testing.T) {
	const count, size, rate = 1000, 50_000, 20 << 20
	namespace := fmt.Sprintf("public/unloaded-%08x", rand.Uint32())
	topic := "persistent://" + namespace + "/t"
	check(t, admin("PUT", "namespaces/"+namespace, map[string]any{}, nil))
	check(t, admin("POST", "namespaces/"+namespace+"/deduplication", true, nil))
	check(t, admin("POST", "namespaces/"+namespace+"/retention", map[string]int{"retentionTimeInMinutes": -1, "retentionSizeInMB": -1}, nil))
	client := newClientOf(t, "pulsar://"+slowWay(t, strings.TrimPrefix(pulsarURL, "pulsar://"), rate))
	p := producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true, MaxPendingMessages: count / 2, SendTimeout: -1})

	var failed atomic.Int32
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for n := range count {
			payload := binary.BigEndian.AppendUint32(make([]byte, 0, size), uint32(n))[:size]
			p.SendAsync(context.Background(), &pulsar.ProducerMessage{Payload: payload}, func(_ pulsar.MessageID, _ *pulsar.ProducerMessage, err error) {
				if err != nil {
					failed.Add(1)
				}
			})
		}
	}()
	for range 5 {
		time.Sleep(300 * time.Millisecond)
		check(t, admin("PUT", topic+"/unload", nil, nil))
	}
	<-sent
	ctx, cancel := context.WithTimeout(context.Background(), 3*wait)
	defer cancel()
	check(t, p.FlushWithCtx(ctx))
	if failed.Load() > 0 {
		t.Fatalf("%d messages failed", failed.Load())
	}

	reader := must(newClient(t).CreateReader(pulsar.ReaderOptions{Topic: topic, StartMessageID: pulsar.EarliestMessageID()}))(t)
	defer reader.Close()
	next := uint32(0)
	for ; reader.HasNext(); next++ {
		m := must(reader.Next(ctx))(t)
		if n := binary.BigEndian.Uint32(m.Payload()); n != next {
			t.Fatalf("%d stands where %d should, at %v; all have receipts", n, next, m.ID())
		}
	}
	if next != count {
		t.Fatalf("%d messages are there, %d have receipts", next, count)
	}
}

// slowWay is an address from which the server at another one gets so many bytes per second; what comes back takes no time. Clients that look
// a topic up on this way are sent to it again.
func slowWay(t *testing.T, to string, rate int) string {
	host, port, err := net.SplitHostPort(to)
	check(t, err)
	number := must(strconv.Atoi(port))(t)
	var listener net.Listener
	for listener == nil {
		number++
		listener, _ = net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(number)))
	}
	t.Cleanup(func() { listener.Close() })
	from := listener.Addr().String()
	if len(from) != len(to) {
		t.Fatalf("%s does not fit where %s is in an answer", from, to)
	}
	forth := func(server, client net.Conn) {
		defer server.Close()
		client.(*net.TCPConn).SetReadBuffer(64 << 10)
		for buffer := make([]byte, 16<<10); ; {
			n, err := client.Read(buffer)
			if _, unsent := server.Write(buffer[:n]); err != nil || unsent != nil {
				return
			}
			time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
		}
	}
	back := func(client, server net.Conn) {
		defer client.Close()
		for buffer := make([]byte, 16<<10); ; {
			n, err := server.Read(buffer)
			if _, unsent := client.Write(bytes.ReplaceAll(buffer[:n], []byte(to), []byte(from))); err != nil || unsent != nil {
				return
			}
		}
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			go forth(server, client)
			go back(client, server)
		}
	}()
	return from
}
