package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/log"
	"github.com/sirupsen/logrus"

	"geminga/tests/end-to-end/workload"
)

// campaign is a set of topics and senders over some rounds.
type campaign struct {
	server    *server
	random    *rand.Rand
	roundTime time.Duration
	number    int // of the round, counted from 1
	topics    []*workload.Topic
	senders   []*workload.Sender
	staying   pulsar.Client
	stayEnd   context.CancelFunc
	stayers   sync.WaitGroup
	problems  *workload.Violations
}

const (
	drainLimit     = 60 * time.Second
	quietTime      = 700 * time.Millisecond
	operationLimit = 10 * time.Second
	pauseLimit     = 25 * time.Millisecond // of a sender between two bursts
)

func newCampaign(s *server, random *rand.Rand, roundTime time.Duration) (*campaign, error) {
	c := &campaign{server: s, random: random, roundTime: roundTime, problems: &workload.Violations{}}
	mark := fmt.Sprintf("%x", time.Now().UnixNano()) // not from the seed: a server from outside keeps its topics
	namespace := "public/dedup-" + mark
	if err := s.rest("PUT", "namespaces/"+namespace, map[string]any{}, nil); err != nil {
		return nil, err
	}
	if err := s.rest("POST", "namespaces/"+namespace+"/deduplication", true, nil); err != nil {
		return nil, err
	}
	plain := c.addTopic("persistent://public/default/crash-"+mark+"-plain", false)
	batched := c.addTopic("persistent://public/default/crash-"+mark+"-batched", false)
	dedup := c.addTopic("persistent://"+namespace+"/crash", true)
	unbatched := pulsar.ProducerOptions{DisableBatching: true}
	batches := pulsar.ProducerOptions{BatcherBuilderType: pulsar.KeyBasedBatchBuilder, BatchingMaxPublishDelay: 3 * time.Millisecond, BatchingMaxMessages: 40}
	c.addSender(plain, "comes-and-goes", unbatched, false, false)
	c.addSender(plain, "stays", unbatched, true, false)
	c.addSender(batched, "comes-and-goes", batches, false, false)
	c.addSender(batched, "stays", batches, true, false)
	c.addSender(dedup, "resends", unbatched, false, true)
	c.addSender(dedup, "stays", unbatched, true, false)
	return c, c.connectStaying()
}

func (c *campaign) addTopic(name string, deduplicated bool) *workload.Topic {
	t := workload.NewTopic(name, deduplicated, c.problems)
	c.topics = append(c.topics, t)
	return t
}

func (c *campaign) addSender(t *workload.Topic, name string, options pulsar.ProducerOptions, stays, resends bool) {
	options.CompressionType = pulsar.CompressionType(c.random.IntN(2))
	c.senders = append(c.senders, workload.NewSender(t, name, options, pauseLimit, stays, resends))
}

func (c *campaign) newClient() (pulsar.Client, error) {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	return pulsar.NewClient(pulsar.ClientOptions{URL: c.server.url, OperationTimeout: operationLimit, ConnectionTimeout: operationLimit,
		Logger: log.NewLoggerWithLogrus(logger), MemoryLimitBytes: 64 << 20})
}

// connectStaying subscribes everything once, so that nothing is sent before its subscriptions exist, and starts the senders
// that live on over restarts.
func (c *campaign) connectStaying() (err error) {
	if c.staying, err = c.newClient(); err != nil {
		return err
	}
	for _, t := range c.topics {
		for _, k := range workload.Kinds {
			one, err := c.staying.Subscribe(c.consumerOptions(t, k))
			if err != nil {
				return fmt.Errorf("subscribe %s %s: %w", t.Name, k.Name, err)
			}
			one.Close()
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.stayEnd = cancel
	for _, s := range c.senders {
		if s.Stays {
			if err := s.Connect(c.staying); err != nil {
				return fmt.Errorf("producer %s on %s: %w", s.Name, s.Topic.Name, err)
			}
			c.start(&c.stayers, func(r *rand.Rand) { s.Run(ctx, r) })
		}
	}
	return nil
}

func (c *campaign) consumerOptions(t *workload.Topic, k workload.Kind) pulsar.ConsumerOptions {
	never := uint(0)
	return pulsar.ConsumerOptions{Topic: t.Name, SubscriptionName: k.Name, Type: k.Is, AckWithResponse: k.Receipts,
		SubscriptionInitialPosition: pulsar.SubscriptionPositionEarliest, EnableBatchIndexAcknowledgment: true,
		NackRedeliveryDelay: 100 * time.Millisecond, ReceiverQueueSize: 200, MaxReconnectToBroker: &never}
}

// start runs a function beside, with a stream of random numbers of its own.
func (c *campaign) start(group *sync.WaitGroup, run func(*rand.Rand)) {
	random := rand.New(rand.NewPCG(c.random.Uint64(), 0))
	group.Add(1)
	go func() {
		defer group.Done()
		run(random)
	}()
}

// crowd is the clients of one round.
type crowd struct {
	client  pulsar.Client
	workers sync.WaitGroup
	stop    context.CancelFunc
	pumps   sync.WaitGroup
	closed  context.CancelFunc
}

// gather connects the clients of a round and sets them to work; with `calm`, consumers only, which acknowledge all.
func (c *campaign) gather(calm bool) (*crowd, error) {
	c.number++
	client, err := c.newClient()
	if err != nil {
		return nil, err
	}
	working, stop := context.WithCancel(context.Background())
	open, closed := context.WithCancel(context.Background())
	g := &crowd{client: client, stop: stop, closed: closed}
	for _, t := range c.topics {
		for i, k := range workload.Kinds {
			for range k.Consumers {
				consumer, err := client.Subscribe(c.consumerOptions(t, k))
				if err != nil {
					return g, fmt.Errorf("subscribe %s %s: %w", t.Name, k.Name, err)
				}
				round := int64(c.number)
				r := workload.NewReceiver(round, func() int64 { return round }, t.Subscriptions[i], consumer, k, calm)
				g.pumps.Go(func() { r.Pump(open) })
				c.start(&g.workers, func(random *rand.Rand) { r.Run(working, random) })
			}
		}
	}
	if calm {
		return g, nil
	}
	for _, s := range c.senders {
		if !s.Stays {
			if err := s.Connect(client); err != nil {
				return g, fmt.Errorf("producer %s on %s: %w", s.Name, s.Topic.Name, err)
			}
			c.start(&g.workers, func(random *rand.Rand) { s.Run(working, random) })
		}
	}
	return g, nil
}

// scatter ends the clients of a round. Nobody acknowledges any more when the consumers close: the client reports success
// for an acknowledgement that it drops because its consumer is closing.
func (g *crowd) scatter() {
	g.stop()
	g.workers.Wait()
	g.client.Close()
	g.closed()
	g.pumps.Wait()
}

// round is: clients work for a while, the server dies under them and comes back.
func (c *campaign) round() error {
	work := time.Duration(c.random.Int64N(int64(c.roundTime)))
	draw := c.random.IntN(10)
	g, err := c.gather(false)
	if err == nil {
		time.Sleep(work)
		err = c.server.alive()
	}
	if err == nil && draw == 0 {
		err = c.server.terminate()
	} else {
		c.server.kill()
	}
	if g != nil {
		g.scatter()
	}
	if err != nil {
		return err
	}
	if draw == 1 { // dies once more, while it recovers
		if err := c.server.start(); err != nil {
			return err
		}
		time.Sleep(time.Duration(c.random.IntN(30)) * time.Millisecond)
		c.server.kill()
	}
	if err := c.server.start(); err != nil {
		return err
	}
	return c.problems.Err()
}

// finish lets all receipts come in, drains every subscription, and restarts once more to see that nothing comes back.
func (c *campaign) finish() error {
	c.stayEnd()
	c.stayers.Wait()
	for _, s := range c.senders {
		if s.Stays {
			ctx, cancel := context.WithTimeout(context.Background(), drainLimit)
			err := s.Flush(ctx)
			cancel()
			if err != nil {
				return fmt.Errorf("%s on %s: messages without receipt after %v: %w", s.Name, s.Topic.Name, drainLimit, err)
			}
		}
	}
	g, err := c.gather(true)
	if err == nil {
		err = c.drain(g)
	}
	if err == nil {
		err = c.server.alive()
	}
	c.server.kill()
	if g != nil {
		g.scatter()
	}
	if err != nil {
		return err
	}
	if err := c.server.start(); err != nil {
		return err
	}
	return c.nothingLeft()
}

// drain waits until all is delivered and acknowledged.
func (c *campaign) drain(g *crowd) error {
	begin := time.Now()
	for {
		var wanting string
		for _, t := range c.topics {
			for _, d := range t.Subscriptions {
				if missing := d.Missing(t.Published); len(missing) > 0 {
					wanting = fmt.Sprintf("%s lacks %d messages: %v", d.Name, len(missing), missing[:min(5, len(missing))])
				}
			}
			if wanting == "" {
				wanting = c.backlog(t)
			}
		}
		if err := c.problems.Err(); err != nil {
			return err
		}
		if wanting == "" {
			return nil
		}
		if time.Since(begin) > drainLimit {
			return fmt.Errorf("after %v: %s", drainLimit, wanting)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (c *campaign) backlog(t *workload.Topic) string {
	var stats struct {
		Subscriptions map[string]struct{ MsgBacklog int64 }
	}
	if err := c.server.rest("GET", t.Name+"/stats", nil, &stats); err != nil {
		return err.Error()
	}
	for _, k := range workload.Kinds {
		one, known := stats.Subscriptions[k.Name]
		if !known {
			return fmt.Sprintf("%s has no subscription %s any more", t.Name, k.Name)
		}
		if one.MsgBacklog != 0 {
			return fmt.Sprintf("%s %s: a backlog of %d remains", t.Name, k.Name, one.MsgBacklog)
		}
	}
	return ""
}

// nothingLeft connects all consumers after the last restart: what had its receipt must not come again.
func (c *campaign) nothingLeft() error {
	g, err := c.gather(true)
	if err == nil {
		time.Sleep(quietTime)
	}
	g.scatter()
	if err != nil {
		return err
	}
	return c.problems.Err()
}

func (c *campaign) close() {
	if c.stayEnd != nil {
		c.stayEnd()
	}
	if c.staying != nil {
		c.staying.Close()
	}
	c.stayers.Wait()
}

func (c *campaign) summary() string {
	messages, deliveries, repeated := 0, 0, 0
	for _, t := range c.topics {
		messages += t.Published.Count()
		for _, d := range t.Subscriptions {
			delivered, again := d.Counts()
			deliveries += delivered
			repeated += again
		}
	}
	return fmt.Sprintf("%d messages with receipt, %d deliveries, %d repeated, slowest start %v", messages, deliveries, repeated,
		c.server.slowestStart.Round(time.Millisecond))
}
