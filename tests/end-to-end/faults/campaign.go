package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/log"
	"github.com/sirupsen/logrus"

	"geminga/tests/end-to-end/workload"
)

const (
	operationLimit = 5 * time.Second
	keepAlive      = 3 * time.Second
	quietTime      = 4 * time.Second
)

// campaign is a set of topics with senders and consumers that come and go, and others that stay, while faults are injected.
type campaign struct {
	config   config
	cluster  *cluster
	random   *rand.Rand
	topics   []*workload.Topic
	clients  []pulsar.Client // one of each topic
	senders  []*workload.Sender
	guests   []*guest
	mover    *mover
	problems *workload.Violations
	began    time.Time

	coming, staying, crowd group
}

// group is goroutines that end together.
type group struct {
	wait sync.WaitGroup
	ctx  context.Context
	stop context.CancelFunc
}

func (g *group) open() { g.ctx, g.stop = context.WithCancel(context.Background()) }

func (g *group) end() {
	if g.stop != nil {
		g.stop()
		g.wait.Wait()
	}
}

// begin runs a function beside, with a stream of random numbers of its own.
func (g *group) begin(from *rand.Rand, run func(context.Context, *rand.Rand)) {
	random := rand.New(rand.NewPCG(from.Uint64(), 0))
	g.wait.Go(func() { run(g.ctx, random) })
}

func newCampaign(config config, c *cluster, random *rand.Rand, number int) (*campaign, error) {
	k := &campaign{config: config, cluster: c, random: random, problems: &workload.Violations{}, began: time.Now()}
	dedup := fmt.Sprintf("public/dedup-%d", number)
	if err := c.brokers[0].rest("PUT", "admin/v2/namespaces/"+dedup, map[string]any{}, nil); err != nil {
		return k, err
	}
	if err := c.brokers[0].rest("POST", "admin/v2/namespaces/"+dedup+"/deduplication", true, nil); err != nil {
		return k, err
	}
	k.mover = &mover{cluster: c, namespaces: []string{"public/default", dedup}, splits: map[string]int{}}
	unbatched := pulsar.ProducerOptions{DisableBatching: true}
	batches := pulsar.ProducerOptions{BatcherBuilderType: pulsar.KeyBasedBatchBuilder, BatchingMaxPublishDelay: 3 * time.Millisecond, BatchingMaxMessages: 40}
	for n := range 2 {
		plain := k.addTopic(fmt.Sprintf("persistent://public/default/faults-%d-plain-%d", number, n), false)
		k.addSender(plain, "comes-and-goes", unbatched, false, false)
		k.addSender(plain, "stays", unbatched, true, false)
		batched := k.addTopic(fmt.Sprintf("persistent://public/default/faults-%d-batched-%d", number, n), false)
		k.addSender(batched, "comes-and-goes", batches, false, false)
		k.addSender(batched, "stays", batches, true, false)
		exactly := k.addTopic(fmt.Sprintf("persistent://%s/faults-%d", dedup, n), true)
		k.addSender(exactly, "resends", unbatched, false, true)
		k.addSender(exactly, "stays", unbatched, true, false)
	}
	return k, k.connect()
}

func (k *campaign) addTopic(name string, deduplicated bool) *workload.Topic {
	t := workload.NewTopic(name, deduplicated, k.problems)
	k.topics = append(k.topics, t)
	return t
}

func (k *campaign) addSender(t *workload.Topic, name string, options pulsar.ProducerOptions, stays, resends bool) {
	options.CompressionType = pulsar.CompressionType(k.random.IntN(2))
	k.senders = append(k.senders, workload.NewSender(t, name, options, k.config.pause, stays, resends))
}

// connect makes all subscriptions, so that nothing is sent before they exist, and sets everybody to work.
func (k *campaign) connect() error {
	for _, t := range k.topics {
		client, err := newClient(k.cluster.url())
		if err != nil {
			return err
		}
		k.clients = append(k.clients, client)
		for _, kind := range workload.Kinds {
			one, err := client.Subscribe(consumerOptions(t, kind, false))
			if err != nil {
				return fmt.Errorf("subscribe %s %s: %w", t.Name, kind.Name, err)
			}
			one.Close()
		}
	}
	if err := k.invite(); err != nil {
		return err
	}
	k.coming.open()
	k.staying.open()
	for _, s := range k.senders {
		client := k.client(s.Topic)
		if !s.Stays {
			k.coming.begin(k.random, func(ctx context.Context, random *rand.Rand) { comeAndGo(ctx, random, client, s) })
			continue
		}
		if err := s.Connect(client); err != nil {
			return fmt.Errorf("producer %s on %s: %w", s.Name, s.Topic.Name, err)
		}
		k.staying.begin(k.random, s.Run)
	}
	k.coming.begin(k.random, k.mover.run)
	k.gather(false)
	return nil
}

func (k *campaign) client(of *workload.Topic) pulsar.Client {
	for i, t := range k.topics {
		if t == of {
			return k.clients[i]
		}
	}
	panic("a sender of no topic")
}

func newClient(url string) (pulsar.Client, error) {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	return pulsar.NewClient(pulsar.ClientOptions{URL: url, OperationTimeout: operationLimit, ConnectionTimeout: operationLimit,
		KeepAliveInterval: keepAlive, Logger: log.NewLoggerWithLogrus(logger), MemoryLimitBytes: 64 << 20})
}

func consumerOptions(t *workload.Topic, kind workload.Kind, reconnects bool) pulsar.ConsumerOptions {
	options := pulsar.ConsumerOptions{Topic: t.Name, SubscriptionName: kind.Name, Type: kind.Is, AckWithResponse: kind.Receipts,
		SubscriptionInitialPosition: pulsar.SubscriptionPositionEarliest, EnableBatchIndexAcknowledgment: true,
		NackRedeliveryDelay: 100 * time.Millisecond, ReceiverQueueSize: 200}
	if !reconnects {
		never := uint(0)
		options.MaxReconnectToBroker = &never
	}
	return options
}

// comeAndGo makes the sender's producer again and again; one that has lost its connection waits for its end.
func comeAndGo(ctx context.Context, random *rand.Rand, client pulsar.Client, s *workload.Sender) {
	for ctx.Err() == nil {
		if err := s.Connect(client); err != nil {
			wait(ctx, 200*time.Millisecond)
			continue
		}
		life, end := context.WithTimeout(ctx, between(random, 1000, 8000))
		s.Run(life, random)
		end()
		s.Close()
	}
}

func wait(ctx context.Context, time_ time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(time_):
	}
}

// gather sets consumers to work on every subscription; calm ones stay, and acknowledge all.
func (k *campaign) gather(calm bool) {
	k.crowd.end()
	k.crowd.open()
	for at, t := range k.topics {
		for i, kind := range workload.Kinds {
			for range kind.Consumers {
				p := place{client: k.clients[at], topic: t, kind: kind, history: t.Subscriptions[i], calm: calm, began: k.began}
				k.crowd.begin(k.random, p.run)
			}
		}
	}
}

// finish is called when all faults are healed. Within the limit, all has its receipt, all is delivered and acknowledged; and nothing
// comes back after everything was killed once more.
func (k *campaign) finish(note func(string, ...any)) error {
	begin := time.Now()
	k.coming.end()
	k.staying.end()
	if err := k.flush(begin.Add(k.config.bound)); err != nil {
		return err
	}
	flushed := time.Since(begin)
	k.gather(true)
	if err := k.drain(begin.Add(k.config.bound), note); err != nil {
		return err
	}
	fmt.Printf("%v after the last fault all had its receipt, after %v all was consumed\n", flushed.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	k.crowd.end()
	for _, g := range k.guests {
		g.end()
	}
	if err := k.cluster.checkProcesses(); err != nil {
		return err
	}
	if err := k.cluster.killAll(); err != nil {
		return err
	}
	k.gather(true)
	time.Sleep(quietTime)
	k.crowd.end()
	return k.problems.Err()
}

func (k *campaign) flush(until time.Time) error {
	ctx, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	for _, s := range k.senders {
		if !s.Stays {
			continue
		}
		if err := s.Flush(ctx); err != nil {
			return fmt.Errorf("%s on %s: messages without receipt %v after the last fault: %w", s.Name, s.Topic.Name, k.config.bound, err)
		}
	}
	for _, g := range k.guests {
		if err := g.flush(time.Until(until)); err != nil {
			return err
		}
	}
	return nil
}

// drain waits until all is delivered and acknowledged.
func (k *campaign) drain(until time.Time, note func(string, ...any)) error {
	for noted := time.Now(); ; {
		wanting := k.wanting()
		if time.Since(noted) > 5*time.Second {
			note("still wanting: %s", wanting)
			noted = time.Now()
		}
		if err := k.problems.Err(); err != nil {
			return err
		}
		if wanting == "" {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("%v after the last fault: %s", k.config.bound, wanting)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (k *campaign) wanting() string {
	for _, t := range k.topics {
		for _, d := range t.Subscriptions {
			if missing := d.Missing(t.Published); len(missing) > 0 {
				return fmt.Sprintf("%s lacks %d messages: %v", d.Name, len(missing), missing[:min(5, len(missing))])
			}
		}
	}
	for _, t := range k.topics {
		if backlog := k.backlog(t); backlog != "" {
			return backlog
		}
	}
	return ""
}

func (k *campaign) backlog(t *workload.Topic) string {
	var stats struct {
		Subscriptions map[string]struct{ MsgBacklog int64 }
	}
	if err := k.cluster.brokers[0].rest("GET", "admin/v2/"+t.Name+"/stats", nil, &stats); err != nil {
		return err.Error()
	}
	for _, d := range t.Subscriptions {
		one, known := stats.Subscriptions[d.Subscription]
		if !known {
			return fmt.Sprintf("%s has no subscription %s any more", t.Name, d.Subscription)
		}
		if one.MsgBacklog != 0 {
			return fmt.Sprintf("%s: a backlog of %d remains", d.Name, one.MsgBacklog)
		}
	}
	return ""
}

func (k *campaign) close() {
	for _, g := range []*group{&k.coming, &k.staying, &k.crowd} {
		if g.stop != nil {
			g.stop()
		}
	}
	for _, client := range k.clients {
		client.Close()
	}
	for _, g := range k.guests {
		if g.process.ProcessState == nil {
			g.process.Process.Kill()
		}
	}
}

// keep writes down what the clients saw.
func (k *campaign) keep(folder string) error {
	for n, t := range k.topics {
		file, err := os.Create(filepath.Join(folder, fmt.Sprintf("history-%d", n)))
		if err != nil {
			return err
		}
		fmt.Fprintln(file, t.Name)
		t.Published.Dump(file)
		for _, d := range t.Subscriptions {
			d.Dump(file)
		}
		if err := file.Close(); err != nil {
			return err
		}
	}
	return nil
}

// counts are of messages with a receipt, deliveries, and repeated ones.
func (k *campaign) counts() (messages, deliveries, repeated int) {
	for _, t := range k.topics {
		messages += t.Published.Count()
		for _, d := range t.Subscriptions {
			delivered, again := d.Counts()
			deliveries += delivered
			repeated += again
		}
	}
	return messages, deliveries, repeated
}
