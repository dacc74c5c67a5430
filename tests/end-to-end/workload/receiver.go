package workload

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
)

const queueLength = 100_000

// Receiver is one consumer of a subscription. Since and Now are in the time of its history.
type Receiver struct {
	Since    int64 // when its consumer was made
	Now      func() int64
	History  *Delivered
	Consumer pulsar.Consumer
	Kind     Kind
	Calm     bool // acknowledges everything: neither holds nor refuses a message
	queue    chan pulsar.Message
	took     atomic.Int64
}

func NewReceiver(since int64, now func() int64, history *Delivered, consumer pulsar.Consumer, kind Kind, calm bool) *Receiver {
	return &Receiver{Since: since, Now: now, History: history, Consumer: consumer, Kind: kind, Calm: calm, queue: make(chan pulsar.Message, queueLength)}
}

// Took is how many messages have come.
func (r *Receiver) Took() int64 { return r.took.Load() }

// Pump takes what comes, until the context ends, and records it. It never waits for an acknowledgement: this client stops
// reading its connection when a consumer's queue is full, and then the receipt of the acknowledgement would not come either.
func (r *Receiver) Pump(ctx context.Context) {
	for ctx.Err() == nil {
		m, err := r.Consumer.Receive(ctx)
		if err != nil {
			pause(ctx, time.Millisecond)
			continue
		}
		parts := strings.SplitN(string(m.Payload()), "|", 4)
		number, err := strconv.Atoi(parts[min(2, len(parts)-1)])
		if err != nil || len(parts) != 4 || m.Key() != parts[1] {
			r.History.problems.Add("%s: damaged message at %v: %.80q", r.History.Name, m.ID(), m.Payload())
			continue
		}
		r.took.Add(1)
		r.History.Received(r.Since, Identity{parts[0], number}, parts[1], positionOf(m.ID()))
		select {
		case r.queue <- m:
		default: // never acknowledged by this consumer
		}
	}
}

// Run takes small batches and acknowledges most of what came, until the context ends.
func (r *Receiver) Run(ctx context.Context, random *rand.Rand) {
	cumulative := r.Kind.Is == pulsar.Exclusive && random.IntN(2) == 0
	var soFar []Position // by a consumer that acknowledges cumulatively: all that came since the last receipt
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
			if (r.Calm || random.IntN(3) > 0) && r.Consumer.AckIDCumulative(last) == nil {
				r.History.Acknowledged(r.Now(), upTo(soFar, positionOf(last)))
				soFar = soFar[:0]
			}
			continue
		}
		var ids []pulsar.MessageID
		for _, m := range batch {
			switch draw := random.IntN(100); {
			case r.Calm || draw < 90:
				ids = append(ids, m.ID())
			case draw < 95 && !r.Kind.Ordered:
				r.Consumer.Nack(m)
			}
		}
		for len(ids) > 0 {
			together := ids[:untilOneComesAgain(positionsOf(ids))]
			ids = ids[len(together):]
			if r.Consumer.AckIDList(together) == nil {
				r.History.Acknowledged(r.Now(), positionsOf(together))
			}
		}
	}
}

// untilOneComesAgain is how many of these positions, in the order they came, are before the first entry that was delivered anew.
// The client sends one set of batch indexes for each entry of a call, that of the last delivery named (`pendingAcks` in AckIDList of
// consumer_partition.go): what the call names of an earlier delivery is not sent, and reported as acknowledged.
func untilOneComesAgain(positions []Position) int {
	newest := map[Position]int32{}
	for i, at := range positions {
		entry := Position{at.Ledger, at.Entry, 0}
		if batch, seen := newest[entry]; seen && batch >= at.Batch {
			return i
		}
		newest[entry] = at.Batch
	}
	return len(positions)
}

// batch waits for a message and takes what is there already behind it.
func (r *Receiver) batch(ctx context.Context, limit int) []pulsar.Message {
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

func positionsOf(ids []pulsar.MessageID) []Position {
	out := make([]Position, len(ids))
	for i, id := range ids {
		out[i] = positionOf(id)
	}
	return out
}

func upTo(positions []Position, last Position) []Position {
	var out []Position
	for _, at := range positions {
		if !last.before(at) {
			out = append(out, at)
		}
	}
	return out
}
