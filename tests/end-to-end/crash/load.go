package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
)

const (
	keys           = 16
	pendingLimit   = 300
	queueLength    = 100_000
	operationLimit = 10 * time.Second
)

// kind is a way to subscribe.
type kind struct {
	name      string
	is        pulsar.SubscriptionType
	consumers int
	ordered   bool
	receipts  bool
}

var kinds = []kind{
	{"exclusive", pulsar.Exclusive, 1, true, true},
	{"failover", pulsar.Failover, 2, true, true},
	{"shared", pulsar.Shared, 3, false, true},
	{"shared-without-receipts", pulsar.Shared, 2, false, false},
	{"key-shared", pulsar.KeyShared, 3, true, true},
}

// sender is a producer with a name that keeps its numbering over all rounds.
type sender struct {
	name    string
	topic   *topic
	options pulsar.ProducerOptions
	stays   bool // lives on over restarts, and its client sends again what has no receipt
	resends bool // is made anew after a restart, and the application sends again what has no receipt
	next    int  // the number of the next new message

	mutex    sync.Mutex
	unproven map[int]bool // sent, without receipt; only kept when the application resends
	producer pulsar.Producer
}

func (s *sender) connect(client pulsar.Client) (err error) {
	s.producer, err = client.CreateProducer(s.options)
	return err
}

// run sends until the context ends: first what has no receipt, in order, then new messages in bursts.
func (s *sender) run(ctx context.Context, random *rand.Rand) {
	if s.resends {
		s.mutex.Lock()
		var again []int
		for number := range s.next {
			if s.unproven[number] {
				again = append(again, number)
			}
		}
		s.mutex.Unlock()
		for _, number := range again {
			if ctx.Err() != nil {
				return
			}
			s.send(ctx, number, random)
		}
	}
	for ctx.Err() == nil {
		for range 1 + random.IntN(30) {
			s.send(ctx, s.next, random)
			s.next++
			if ctx.Err() != nil {
				return
			}
		}
		pause(ctx, time.Duration(random.IntN(25_000))*time.Microsecond)
	}
}

func (s *sender) send(ctx context.Context, number int, random *rand.Rand) {
	size := 20 + random.IntN(300)
	if random.IntN(200) == 0 {
		size = 50_000
	}
	key := keyOf(number)
	message := &pulsar.ProducerMessage{Key: key, Payload: fmt.Appendf(nil, "%s|%s|%d|%s", s.name, key, number, strings.Repeat("x", size))}
	if s.resends {
		sequence := int64(number)
		message.SequenceID = &sequence
		s.mutex.Lock()
		s.unproven[number] = true
		s.mutex.Unlock()
	}
	s.producer.SendAsync(ctx, message, func(id pulsar.MessageID, _ *pulsar.ProducerMessage, err error) {
		if err != nil {
			return
		}
		if s.resends {
			s.mutex.Lock()
			delete(s.unproven, number)
			s.mutex.Unlock()
		}
		s.topic.published.receipt(identity{s.name, number}, positionOf(id))
	})
}

func keyOf(number int) string { return fmt.Sprintf("k%d", number*7919%1009%keys) }

// receiver is one consumer of a subscription in one round.
type receiver struct {
	round    int
	history  *delivered
	consumer pulsar.Consumer
	kind     kind
	calm     bool // acknowledges everything: neither holds nor refuses a message
	queue    chan pulsar.Message
}

// pump takes what comes, until the context ends, and records it. It never waits for an acknowledgement: this client stops
// reading its connection when a consumer's queue is full, and then the receipt of the acknowledgement would not come either.
func (r *receiver) pump(ctx context.Context) {
	for ctx.Err() == nil {
		m, err := r.consumer.Receive(ctx)
		if err != nil {
			pause(ctx, time.Millisecond)
			continue
		}
		parts := strings.SplitN(string(m.Payload()), "|", 4)
		number, err := strconv.Atoi(parts[min(2, len(parts)-1)])
		if err != nil || len(parts) != 4 || m.Key() != parts[1] {
			r.history.problems.add("%s: damaged message at %v: %.80q", r.history.name, m.ID(), m.Payload())
			continue
		}
		r.history.received(r.round, identity{parts[0], number}, parts[1], positionOf(m.ID()))
		select {
		case r.queue <- m:
		default: // never acknowledged in this round
		}
	}
}

// run takes small batches and acknowledges most of what came, until the context ends.
func (r *receiver) run(ctx context.Context, random *rand.Rand) {
	cumulative := r.kind.is == pulsar.Exclusive && random.IntN(2) == 0
	var soFar []position // by a consumer that acknowledges cumulatively: all that came since the last receipt
	for ctx.Err() == nil {
		batch := r.batch(ctx, 1+random.IntN(60))
		if len(batch) == 0 {
			continue
		}
		if cumulative {
			last := batch[len(batch)-1].ID()
			for _, m := range batch {
				soFar = append(soFar, positionOf(m.ID()))
			}
			if (r.calm || random.IntN(3) > 0) && r.consumer.AckIDCumulative(last) == nil {
				r.history.acknowledged(r.round, upTo(soFar, positionOf(last)))
				soFar = soFar[:0]
			}
			continue
		}
		var ids []pulsar.MessageID
		for _, m := range batch {
			switch draw := random.IntN(100); {
			case r.calm || draw < 90:
				ids = append(ids, m.ID())
			case draw < 95 && !r.kind.ordered:
				r.consumer.Nack(m)
			}
		}
		if len(ids) > 0 && r.consumer.AckIDList(ids) == nil {
			r.history.acknowledged(r.round, positionsOf(ids))
		}
	}
}

// batch waits for a message and takes what is there already behind it.
func (r *receiver) batch(ctx context.Context, limit int) []pulsar.Message {
	var out []pulsar.Message
	select {
	case <-ctx.Done():
		return nil
	case m := <-r.queue:
		out = append(out, m)
	}
	for len(out) < limit {
		select {
		case m := <-r.queue:
			out = append(out, m)
		default:
			return out
		}
	}
	return out
}

func positionOf(id pulsar.MessageID) position {
	return position{id.LedgerID(), id.EntryID(), id.BatchIdx()}
}

func positionsOf(ids []pulsar.MessageID) []position {
	out := make([]position, len(ids))
	for i, id := range ids {
		out[i] = positionOf(id)
	}
	return out
}

func upTo(positions []position, last position) []position {
	var out []position
	for _, at := range positions {
		if !last.before(at) {
			out = append(out, at)
		}
	}
	return out
}

func pause(ctx context.Context, time_ time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(time_):
	}
}
