package clients

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
)

func TestExclusiveIsExclusive(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	consumer(t, client, pulsar.ConsumerOptions{Topic: topic})
	if _, err := client.Subscribe(pulsar.ConsumerOptions{Topic: topic, SubscriptionName: "s"}); err == nil {
		t.Fatal("a second consumer came in")
	}
}

func TestPositionSurvivesTheConsumer(t *testing.T) {
	for _, kind := range []pulsar.SubscriptionType{pulsar.Exclusive, pulsar.Failover, pulsar.Shared, pulsar.KeyShared} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			client, topic := newClient(t), newTopic(t)
			options := pulsar.ConsumerOptions{Topic: topic, Type: kind, AckWithResponse: true}
			c := consumer(t, client, options)
			produce(t, producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true}), 0, 50, nil)
			ack(t, c, receive(t, c, 50)[:30])
			c.Close()
			c = consumer(t, client, options)
			equal(t, texts(receiveAll(t, c, 2*time.Second)), series(30, 50))
		})
	}
}

// Holes inside and between batches, acknowledged in lists as they come; the same for every type of subscription.
func TestHolesSurviveTheConsumer(t *testing.T) {
	for _, kind := range []pulsar.SubscriptionType{pulsar.Exclusive, pulsar.Failover, pulsar.Shared, pulsar.KeyShared} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			client, topic := newClient(t), newTopic(t)
			options := pulsar.ConsumerOptions{Topic: topic, Type: kind, AckWithResponse: true, EnableBatchIndexAcknowledgment: true}
			c := consumer(t, client, options)
			produce(t, producer(t, client, pulsar.ProducerOptions{Topic: topic, BatchingMaxMessages: 7}), 0, 700, nil)
			seed := rand.Uint64()
			random := rand.New(rand.NewPCG(seed, 0))
			var left []string
			for received := 0; received < 700; {
				count := min(1+random.IntN(40), 700-received)
				var ids []pulsar.MessageID
				for _, m := range receive(t, c, count) {
					if random.IntN(10) > 0 {
						ids = append(ids, m.ID())
					} else {
						left = append(left, string(m.Payload()))
					}
				}
				if len(ids) > 0 {
					check(t, c.AckIDList(ids))
				}
				received += count
			}
			for round := range 2 { // the second time from what the first left behind
				c.Close()
				c = consumer(t, client, options)
				got := texts(receive(t, c, len(left)))
				slices.Sort(got)
				want := slices.Sorted(slices.Values(left))
				if !slices.Equal(got, want) {
					t.Fatalf("seed %d, round %d: got  %v\nwant %v", seed, round, got, want)
				}
				nothingMore(t, c)
			}
		})
	}
}

func TestCumulativeAck(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	options := pulsar.ConsumerOptions{Topic: topic, Type: pulsar.Failover, AckWithResponse: true}
	c := consumer(t, client, options)
	produce(t, producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true}), 0, 20, nil)
	check(t, c.AckCumulative(receive(t, c, 20)[14]))
	c.Close()
	c = consumer(t, client, options)
	equal(t, texts(receive(t, c, 5)), series(15, 20))
}

func TestSharedSpreads(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	channel := make(chan pulsar.ConsumerMessage, 1000)
	for i := range 3 {
		consumer(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.Shared, MessageChannel: channel, Name: fmt.Sprint("c", i), ReceiverQueueSize: 10})
	}
	produce(t, producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true}), 0, 300, nil)
	by, all := map[string]int{}, []string{}
	for range 300 {
		select {
		case m := <-channel:
			by[m.Consumer.Name()]++
			all = append(all, string(m.Payload()))
			check(t, m.Consumer.Ack(m))
		case <-time.After(wait):
			t.Fatalf("%d of 300 came", len(all))
		}
	}
	equalAnyOrder(t, all, series(0, 300))
	if len(by) != 3 {
		t.Fatalf("shares: %v", by)
	}
}

func TestKeySharedKeepsOrder(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	var consumers []pulsar.Consumer
	for range 3 {
		consumers = append(consumers, consumer(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.KeyShared}))
	}
	p := producer(t, client, pulsar.ProducerOptions{Topic: topic, BatcherBuilderType: pulsar.KeyBasedBatchBuilder})
	produce(t, p, 0, 600, func(i int) string { return fmt.Sprint("key-", i%40) })
	owner, order, total := map[string]int{}, map[string][]int{}, 0
	for n, c := range consumers {
		for _, m := range receiveAll(t, c, time.Second) {
			if before, seen := owner[m.Key()]; seen && before != n {
				t.Fatalf("key %s at two consumers", m.Key())
			}
			owner[m.Key()] = n
			var number int
			fmt.Sscanf(string(m.Payload()), "m%d", &number)
			order[m.Key()] = append(order[m.Key()], number)
			total++
		}
	}
	for key, numbers := range order {
		if !slices.IsSorted(numbers) {
			t.Fatalf("key %s out of order: %v", key, numbers)
		}
	}
	if total != 600 {
		t.Fatalf("%d messages", total)
	}
}

func TestFailoverMovesOn(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	a := consumer(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.Failover, Name: "a"})
	b := consumer(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.Failover, Name: "b"})
	p := producer(t, client, pulsar.ProducerOptions{Topic: topic})
	produce(t, p, 0, 20, nil)
	fromA, fromB := receiveAll(t, a, time.Second), receiveAll(t, b, time.Second)
	equal(t, texts(append(fromA, fromB...)), series(0, 20))
	active, standby := a, b
	if len(fromB) > 0 {
		active, standby = b, a
	}
	if len(fromA) > 0 && len(fromB) > 0 {
		t.Fatal("both consumers of a Failover subscription got messages")
	}
	active.Close()
	produce(t, p, 20, 20, nil)
	equal(t, texts(receive(t, standby, 20)), series(20, 40))
}

func TestNack(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.Shared, NackRedeliveryDelay: 100 * time.Millisecond})
	produce(t, producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true}), 0, 10, nil)
	for round := range uint32(3) {
		messages := receive(t, c, 10)
		equalAnyOrder(t, texts(messages), series(0, 10))
		for _, m := range messages {
			if m.RedeliveryCount() != round {
				t.Fatalf("redelivery count %d in round %d", m.RedeliveryCount(), round)
			}
			c.Nack(m)
		}
	}
}

func TestDeadLetters(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	letters := consumer(t, client, pulsar.ConsumerOptions{Topic: topic + "-dead"})
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.Shared, NackRedeliveryDelay: 50 * time.Millisecond,
		DLQ: &pulsar.DLQPolicy{MaxDeliveries: 2, DeadLetterTopic: topic + "-dead"}})
	produce(t, producer(t, client, pulsar.ProducerOptions{Topic: topic}), 0, 3, nil)
	for range 2 {
		for _, m := range receive(t, c, 3) {
			c.Nack(m)
		}
	}
	equalAnyOrder(t, texts(receive(t, letters, 3)), series(0, 3))
	nothingMore(t, c)
}

func TestRetryLetters(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.Shared, RetryEnable: true,
		DLQ: &pulsar.DLQPolicy{MaxDeliveries: 5, RetryLetterTopic: topic + "-retry", DeadLetterTopic: topic + "-dead"}})
	produce(t, producer(t, client, pulsar.ProducerOptions{Topic: topic}), 0, 1, nil)
	c.ReconsumeLater(receive(t, c, 1)[0], 500*time.Millisecond)
	again := receive(t, c, 1)[0]
	if again.Topic() == topic || string(again.Payload()) != "m0" {
		t.Fatalf("%s from %s", again.Payload(), again.Topic())
	}
}

func TestDelayedDelivery(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.Shared})
	p := producer(t, client, pulsar.ProducerOptions{Topic: topic})
	begin := time.Now()
	must(p.Send(context.Background(), &pulsar.ProducerMessage{Payload: []byte("m0"), DeliverAfter: 2 * time.Second}))(t)
	equal(t, texts(receive(t, c, 1)), []string{"m0"})
	if late := time.Since(begin); late < 1500*time.Millisecond || late > 6*time.Second {
		t.Fatalf("delivered after %v", late)
	}
}

func TestSeek(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic, StartMessageIDInclusive: true})
	p := producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true})
	ids := produce(t, p, 0, 20, nil)
	ack(t, c, receive(t, c, 20))
	check(t, c.Seek(ids[12]))
	equal(t, texts(receive(t, c, 8)), series(12, 20))
	check(t, c.Seek(ids[0]))
	equal(t, texts(receive(t, c, 20)), series(0, 20))
	time.Sleep(50 * time.Millisecond)
	middle := time.Now()
	time.Sleep(50 * time.Millisecond)
	produce(t, p, 20, 5, nil)
	check(t, c.SeekByTime(middle))
	equal(t, texts(receive(t, c, 5)), series(20, 25))
}

func TestReaders(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	ids := produce(t, producer(t, client, pulsar.ProducerOptions{Topic: topic, BatchingMaxMessages: 4}), 0, 20, nil)
	for _, start := range []struct {
		id        pulsar.MessageID
		inclusive bool
		first     int
	}{{pulsar.EarliestMessageID(), false, 0}, {ids[7], false, 8}, {ids[7], true, 7}, {ids[19], true, 19}, {ids[19], false, 20}, {pulsar.LatestMessageID(), false, 20}} {
		r := must(client.CreateReader(pulsar.ReaderOptions{Topic: topic, StartMessageID: start.id, StartMessageIDInclusive: start.inclusive}))(t)
		var got []string
		for r.HasNext() {
			ctx, cancel := context.WithTimeout(context.Background(), wait)
			got = append(got, string(must(r.Next(ctx))(t).Payload()))
			cancel()
		}
		equal(t, got, series(start.first, 20))
		r.Close()
	}
}

func TestUnsubscribe(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic})
	check(t, c.Unsubscribe())
	var names []string
	check(t, admin("GET", topic+"/subscriptions", nil, &names))
	if len(names) != 0 {
		t.Fatalf("still there: %v", names)
	}
}

func TestPartitions(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	check(t, admin("PUT", topic+"/partitions", 3, nil))
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic, AutoDiscoveryPeriod: time.Second})
	p := producer(t, client, pulsar.ProducerOptions{Topic: topic, PartitionsAutoDiscoveryInterval: time.Second, DisableBatching: true})
	produce(t, p, 0, 30, nil)
	messages := receive(t, c, 30)
	equalAnyOrder(t, texts(messages), series(0, 30))
	ack(t, c, messages)
	check(t, admin("POST", topic+"/partitions", 6, nil))
	partitions := map[int32]bool{}
	for next, end := 30, time.Now().Add(wait); len(partitions) < 6; next += 6 {
		if time.Now().After(end) {
			t.Fatalf("only partitions %v are in use", partitions)
		}
		produce(t, p, next, 6, nil)
		for _, m := range receive(t, c, 6) {
			partitions[m.ID().PartitionIdx()] = true
			check(t, c.Ack(m))
		}
	}
}

func TestPatternFindsNewTopics(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	produce(t, producer(t, client, pulsar.ProducerOptions{Topic: topic + "-a"}), 0, 5, nil)
	c := consumer(t, client, pulsar.ConsumerOptions{TopicsPattern: topic + "-.*", AutoDiscoveryPeriod: 300 * time.Millisecond,
		SubscriptionInitialPosition: pulsar.SubscriptionPositionEarliest})
	equal(t, texts(receive(t, c, 5)), series(0, 5))
	produce(t, producer(t, client, pulsar.ProducerOptions{Topic: topic + "-b"}), 5, 5, nil)
	equal(t, texts(receive(t, c, 5)), series(5, 10))
}

func TestLastMessageIDs(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	c := consumer(t, client, pulsar.ConsumerOptions{Topic: topic})
	ids := produce(t, producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true}), 0, 5, nil)
	last := must(c.GetLastMessageIDs())(t)
	if len(last) != 1 || last[0].LedgerID() != ids[4].LedgerID() || last[0].EntryID() != ids[4].EntryID() {
		t.Fatalf("%v, expected %v", last, ids[4])
	}
}

func TestTableView(t *testing.T) {
	client, topic := newClient(t), newTopic(t)
	p := producer(t, client, pulsar.ProducerOptions{Topic: topic})
	produce(t, p, 0, 20, func(i int) string { return fmt.Sprint("k", i%5) })
	view := must(client.CreateTableView(pulsar.TableViewOptions{Topic: topic, Schema: pulsar.NewBytesSchema(nil), SchemaValueType: reflect.TypeFor[[]byte]()}))(t)
	defer view.Close()
	if view.Size() != 5 || string(view.Get("k3").([]byte)) != "m18" {
		t.Fatalf("%v", view.Entries())
	}
	produce(t, p, 20, 1, func(int) string { return "k3" })
	until(t, "the new value", func() bool { return string(view.Get("k3").([]byte)) == "m20" })
}
