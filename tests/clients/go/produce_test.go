package clients

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
)

func TestOrder(t *testing.T) {
	for _, batching := range []bool{true, false} {
		t.Run(fmt.Sprintf("batching=%v", batching), func(t *testing.T) {
			client, topic := newClient(t), newTopic(t)
			c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic})
			p := producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: !batching, BatchingMaxMessages: 20})
			ids := produce(t, p, 0, 205, nil)
			messages := receive(t, c, 205)
			equal(t, texts(messages), series(0, 205))
			for i, m := range messages {
				if m.ID().LedgerID() != ids[i].LedgerID() || m.ID().EntryID() != ids[i].EntryID() || m.ID().BatchIdx() != ids[i].BatchIdx() {
					t.Fatalf("message %d: sent as %v, received as %v", i, ids[i], m.ID())
				}
			}
			ack(t, c, messages)
			nothingMore(t, c)
		})
	}
}

func TestCompression(t *testing.T) {
	for _, kind := range []pulsar.CompressionType{pulsar.NoCompression, pulsar.LZ4, pulsar.ZLib, pulsar.ZSTD, pulsar.SNAPPY} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			client, topic := newClient(t), newTopic(t)
			c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic})
			p := producer(t, client, pulsar.ProducerOptions{Topic: topic, CompressionType: kind})
			body := bytes.Repeat([]byte("compressible "), 5000)
			must(p.Send(context.Background(), &pulsar.ProducerMessage{Payload: body}))(t)
			if got := receive(t, c, 1)[0].Payload(); !bytes.Equal(got, body) {
				t.Fatalf("%d bytes came back", len(got))
			}
		})
	}
}

func TestMessageFields(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic})
	p := producer(t, client, pulsar.ProducerOptions{Topic: topic, Name: "producer-name"})
	when, sequence := time.UnixMilli(1234567890123), int64(77)
	must(p.Send(context.Background(), &pulsar.ProducerMessage{Payload: []byte("x"), Key: "k", OrderingKey: "o", EventTime: when,
		Properties: map[string]string{"a": "1", "б": "2"}, SequenceID: &sequence}))(t)
	m := receive(t, c, 1)[0]
	if m.Key() != "k" || m.OrderingKey() != "o" || !m.EventTime().Equal(when) || len(m.Properties()) != 2 || m.Properties()["б"] != "2" ||
		m.ProducerName() != "producer-name" || m.Topic() != topic || time.Since(m.PublishTime()).Abs() > time.Minute {
		t.Fatalf("fields changed on the way: %+v", m)
	}
	if p.LastSequenceID() != 77 {
		t.Fatalf("last sequence id %d", p.LastSequenceID())
	}
}

func TestBrokerEntryMetadata(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic})
	produce(t, producer(t, client, pulsar.ProducerOptions{Topic: topic, BatchingMaxMessages: 5}), 0, 20, nil)
	for i, m := range receive(t, c, 20) {
		if m.Index() == nil || *m.Index() != uint64(i) {
			t.Fatalf("message %d has index %v", i, m.Index())
		}
		if m.BrokerPublishTime() == nil || time.Since(*m.BrokerPublishTime()).Abs() > time.Minute {
			t.Fatalf("message %d has broker time %v", i, m.BrokerPublishTime())
		}
	}
}

func TestChunking(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic})
	p := producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true, EnableChunking: true})
	body := make([]byte, 12_000_000)
	for i := range body {
		body[i] = byte(i * 31 % 251)
	}
	must(p.Send(context.Background(), &pulsar.ProducerMessage{Payload: body}))(t)
	must(p.Send(context.Background(), &pulsar.ProducerMessage{Payload: []byte("after")}))(t)
	messages := receive(t, c, 2)
	if !bytes.Equal(messages[0].Payload(), body) || string(messages[1].Payload()) != "after" {
		t.Fatal("a chunked message did not come back whole and in order")
	}
}

func TestTooLarge(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	p := producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true})
	if _, err := p.Send(context.Background(), &pulsar.ProducerMessage{Payload: make([]byte, 5*1024*1024+1)}); err == nil {
		t.Fatal("a message above the limit was accepted")
	}
	produce(t, p, 0, 1, nil)
}

func TestNameInUse(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	first := producer(t, client, pulsar.ProducerOptions{Topic: topic, Name: "mine"})
	if _, err := client.CreateProducer(pulsar.ProducerOptions{Topic: topic, Name: "mine"}); err == nil {
		t.Fatal("two producers of one name")
	}
	first.Close()
	producer(t, client, pulsar.ProducerOptions{Topic: topic, Name: "mine"})
}

func TestExclusiveAccess(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	first := producer(t, client, pulsar.ProducerOptions{Topic: topic, ProducerAccessMode: pulsar.ProducerAccessModeExclusive})
	produce(t, first, 0, 5, nil)
	for _, mode := range []pulsar.ProducerAccessMode{pulsar.ProducerAccessModeExclusive, pulsar.ProducerAccessModeShared} {
		if _, err := client.CreateProducer(pulsar.ProducerOptions{Topic: topic, ProducerAccessMode: mode}); err == nil {
			t.Fatalf("mode %d came in beside an exclusive producer", mode)
		}
	}
	waiting := make(chan pulsar.Producer, 1)
	other := newClient(t)
	go func() {
		p, err := other.CreateProducer(pulsar.ProducerOptions{Topic: topic, ProducerAccessMode: pulsar.ProducerAccessModeWaitForExclusive})
		if err == nil {
			waiting <- p
		}
	}()
	select {
	case <-waiting:
		t.Fatal("did not wait for the exclusive producer to leave")
	case <-time.After(quiet):
	}
	first.Close()
	select {
	case p := <-waiting:
		produce(t, p, 5, 5, nil)
		p.Close()
	case <-time.After(wait):
		t.Fatal("still waiting though the exclusive producer has left")
	}
}

func TestDeduplication(t *testing.T) {
	client := newClient(t)
	namespace := fmt.Sprintf("public/go-%d", time.Now().UnixNano())
	check(t, admin("PUT", "namespaces/"+namespace, map[string]any{}, nil))
	check(t, admin("POST", "namespaces/"+namespace+"/deduplication", true, nil))
	topic := "persistent://" + namespace + "/t"
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic})
	for range 2 {
		p := producer(t, client, pulsar.ProducerOptions{Topic: topic, Name: "p", DisableBatching: true})
		for i := range int64(10) {
			sequence := 100 + i
			must(p.Send(context.Background(), &pulsar.ProducerMessage{Payload: fmt.Appendf(nil, "m%d", i), SequenceID: &sequence}))(t)
		}
		if p.LastSequenceID() != 109 {
			t.Fatalf("last sequence id %d", p.LastSequenceID())
		}
		p.Close()
	}
	equal(t, texts(receive(t, c, 10)), series(0, 10))
	nothingMore(t, c)
}

func TestSchemas(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	type person struct {
		Name string
		Age  int
	}
	definition := `{"type":"record","name":"Person","fields":[{"name":"Name","type":"string"},{"name":"Age","type":"int"}]}`
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic, Schema: pulsar.NewJSONSchema(definition, nil)})
	p := producer(t, client, pulsar.ProducerOptions{Topic: topic, Schema: pulsar.NewJSONSchema(definition, nil)})
	must(p.Send(context.Background(), &pulsar.ProducerMessage{Value: &person{"a", 7}}))(t)
	var got person
	check(t, receive(t, c, 1)[0].GetSchemaValue(&got))
	if got != (person{"a", 7}) {
		t.Fatalf("%+v", got)
	}
	if _, err := client.CreateProducer(pulsar.ProducerOptions{Topic: topic, Schema: pulsar.NewStringSchema(nil)}); err == nil {
		t.Fatal("a producer with another type of schema came in")
	}
}
