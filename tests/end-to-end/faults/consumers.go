package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"

	"geminga/tests/end-to-end/workload"
)

const (
	idleLimit           = 3 * time.Second // of a consumer that cannot reconnect
	idleLimitReconnects = 15 * time.Second
)

// place is for one consumer of a subscription after the other.
type place struct {
	client  pulsar.Client
	topic   *workload.Topic
	kind    workload.Kind
	history *workload.Delivered
	calm    bool
	began   time.Time // the beginning of time
}

func (p place) now() int64 { return int64(time.Since(p.began)) }

func (p place) run(ctx context.Context, random *rand.Rand) {
	for ctx.Err() == nil {
		// The Go client forgets the message in its hand when it reconnects (`messages = nil` in consumer_partition.go), and gets
		// it again only when the consumer is made anew. So a Go consumer that reconnects tells nothing about order.
		reconnects := random.IntN(2) == 0 && !p.kind.Ordered
		since := p.now()
		consumer, err := p.client.Subscribe(consumerOptions(p.topic, p.kind, reconnects))
		if err != nil {
			wait(ctx, 200*time.Millisecond)
			continue
		}
		receiver := workload.NewReceiver(since, p.now, p.history, consumer, p.kind, p.calm)
		lifetime, idle := between(random, 2000, 20_000), idleLimit
		if reconnects {
			idle = idleLimitReconnects
		}
		if p.calm { // what is made anew gets again what it had: too often, and nobody comes to an end
			lifetime, idle = time.Hour, idleLimitReconnects
		}
		live(ctx, random, receiver, lifetime, idle)
	}
}

// live lets a consumer work until its time is over or nothing comes any more. Nobody acknowledges any more when it closes: the client
// reports success for an acknowledgement that it drops because its consumer is closing.
func live(ctx context.Context, random *rand.Rand, r *workload.Receiver, lifetime, idle time.Duration) {
	working, stop := context.WithTimeout(ctx, lifetime)
	open, closed := context.WithCancel(context.Background())
	var worker, pump sync.WaitGroup
	pump.Go(func() { r.Pump(open) })
	worker.Go(func() { r.Run(working, random) })
	for took, since := r.Took(), time.Now(); working.Err() == nil && time.Since(since) < idle; {
		wait(working, 200*time.Millisecond)
		if now := r.Took(); now != took {
			took, since = now, time.Now()
		}
	}
	stop()
	worker.Wait()
	r.Consumer.Close()
	closed()
	pump.Wait()
}
