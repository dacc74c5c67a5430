// Package clients tests a server with the Go client. PULSAR_URL and ADMIN_URL name the server; every test has topics of
// its own, so the suite can run against any server, several times.
package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/log"
	"github.com/sirupsen/logrus"
)

const (
	wait  = 10 * time.Second
	quiet = 500 * time.Millisecond
)

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

var (
	pulsarURL = env("PULSAR_URL", "pulsar://127.0.0.1:6650")
	adminURL  = env("ADMIN_URL", "http://127.0.0.1:8080")
)

func newClient(t *testing.T) pulsar.Client {
	t.Helper()
	return newClientOf(t, pulsarURL)
}

func newClientOf(t *testing.T, url string) pulsar.Client {
	t.Helper()
	logger := logrus.New()
	logger.SetLevel(logrus.FatalLevel)
	client, err := pulsar.NewClient(pulsar.ClientOptions{URL: url, OperationTimeout: wait,
		Logger: log.NewLoggerWithLogrus(logger)})
	check(t, err)
	t.Cleanup(client.Close)
	return client
}

func newTopic(t *testing.T) string {
	name := strings.ReplaceAll(t.Name(), "/", "-")
	return fmt.Sprintf("persistent://public/default/%s-%08x", name, rand.Uint32())
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](value T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return value
	}
}

func producer(t *testing.T, client pulsar.Client, options pulsar.ProducerOptions) pulsar.Producer {
	t.Helper()
	p := must(client.CreateProducer(options))(t)
	t.Cleanup(p.Close)
	return p
}

func consumer(t *testing.T, client pulsar.Client, options pulsar.ConsumerOptions) pulsar.Consumer {
	t.Helper()
	if options.SubscriptionName == "" {
		options.SubscriptionName = "s"
	}
	c := must(client.Subscribe(options))(t)
	t.Cleanup(c.Close)
	return c
}

// produce sends m<first> to m<first+count-1> and returns their ids.
func produce(t *testing.T, p pulsar.Producer, first, count int, key func(int) string) []pulsar.MessageID {
	t.Helper()
	type receipt struct {
		index int
		id    pulsar.MessageID
		err   error
	}
	receipts := make(chan receipt, count)
	for i := range count {
		message := &pulsar.ProducerMessage{Payload: fmt.Appendf(nil, "m%d", first+i)}
		if key != nil {
			message.Key = key(first + i)
		}
		p.SendAsync(context.Background(), message, func(id pulsar.MessageID, _ *pulsar.ProducerMessage, err error) {
			receipts <- receipt{i, id, err}
		})
	}
	check(t, p.Flush())
	ids := make([]pulsar.MessageID, count)
	for range count {
		r := <-receipts
		check(t, r.err)
		ids[r.index] = r.id
	}
	return ids
}

func receive(t *testing.T, c pulsar.Consumer, count int) []pulsar.Message {
	t.Helper()
	var messages []pulsar.Message
	for range count {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		m, err := c.Receive(ctx)
		cancel()
		if err != nil {
			t.Fatalf("message %d of %d: %v", len(messages), count, err)
		}
		messages = append(messages, m)
	}
	return messages
}

// receiveAll takes all that comes until it has been quiet for a while, and acknowledges it.
func receiveAll(t *testing.T, c pulsar.Consumer, calm time.Duration) []pulsar.Message {
	t.Helper()
	var messages []pulsar.Message
	for {
		ctx, cancel := context.WithTimeout(context.Background(), calm)
		m, err := c.Receive(ctx)
		cancel()
		if err != nil {
			return messages
		}
		check(t, c.Ack(m))
		messages = append(messages, m)
	}
}

func ack(t *testing.T, c pulsar.Consumer, messages []pulsar.Message) {
	t.Helper()
	for _, m := range messages {
		check(t, c.Ack(m))
	}
}

func nothingMore(t *testing.T, c pulsar.Consumer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), quiet)
	defer cancel()
	if m, err := c.Receive(ctx); err == nil {
		t.Fatalf("unexpected message %q %v", m.Payload(), m.ID())
	}
}

func texts(messages []pulsar.Message) []string {
	out := make([]string, len(messages))
	for i, m := range messages {
		out[i] = string(m.Payload())
	}
	return out
}

// series is m<first> to m<end-1>.
func series(first, end int) []string {
	var out []string
	for i := first; i < end; i++ {
		out = append(out, fmt.Sprintf("m%d", i))
	}
	return out
}

func equal(t *testing.T, got, want []string) {
	t.Helper()
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Fatalf("got  %v\nwant %v", got, want)
	}
}

func equalAnyOrder(t *testing.T, got, want []string) {
	t.Helper()
	got, want = append([]string{}, got...), append([]string{}, want...)
	sort.Strings(got)
	sort.Strings(want)
	equal(t, got, want)
}

func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(wait); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// admin makes a REST call and decodes the answer into result, unless that is nil; any status but 2xx is an error.
func admin(method, path string, body, result any) error {
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(encoded)
	}
	request, err := http.NewRequest(method, adminURL+"/admin/v2/"+strings.Replace(path, "://", "/", 1), content)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, text)
	}
	if result != nil {
		return json.Unmarshal(text, result)
	}
	return nil
}
