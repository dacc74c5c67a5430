package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
)

const (
	keys         = 16
	pendingLimit = 300
)

// Sender is a producer with a name that keeps its numbering for ever, however often its producer is made anew.
type Sender struct {
	Name    string
	Topic   *Topic
	Stays   bool // its client reconnects by itself, and sends again what has no receipt
	Resends bool // the application sends again what has no receipt when the producer is made anew
	options pulsar.ProducerOptions
	pause   time.Duration // longest between two bursts
	next    int           // the number of the next new message

	mutex    sync.Mutex
	unproven map[int]bool // sent, without receipt; only kept when the application resends
	producer pulsar.Producer
}

// NewSender takes the options of batching; the rest is set here.
func NewSender(t *Topic, name string, options pulsar.ProducerOptions, pause time.Duration, stays, resends bool) *Sender {
	options.Topic, options.Name, options.MaxPendingMessages, options.SendTimeout = t.Name, name, pendingLimit, -1
	if !stays {
		never := uint(0)
		options.MaxReconnectToBroker = &never
	}
	return &Sender{Name: name, Topic: t, Stays: stays, Resends: resends, options: options, pause: pause, unproven: map[int]bool{}}
}

// Connect makes a producer; whoever calls it closes the one before.
func (s *Sender) Connect(client pulsar.Client) (err error) {
	s.producer, err = client.CreateProducer(s.options)
	return err
}

// Flush waits until everything that was sent has a receipt.
func (s *Sender) Flush(ctx context.Context) error { return s.producer.FlushWithCtx(ctx) }

// Close ends the producer. What has no receipt by then never gets one.
func (s *Sender) Close() { s.producer.Close() }

// Run sends until the context ends: first what has no receipt, in order, then new messages in bursts.
func (s *Sender) Run(ctx context.Context, random *rand.Rand) {
	if s.Resends {
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
		pause(ctx, time.Duration(random.Int64N(int64(s.pause))))
	}
}

func (s *Sender) send(ctx context.Context, number int, random *rand.Rand) {
	size := 20 + random.IntN(300)
	if random.IntN(200) == 0 {
		size = 50_000
	}
	key := keyOf(number)
	message := &pulsar.ProducerMessage{Key: key, Payload: fmt.Appendf(nil, "%s|%s|%d|%s", s.Name, key, number, strings.Repeat("x", size))}
	if s.Resends {
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
		if s.Resends {
			s.mutex.Lock()
			delete(s.unproven, number)
			s.mutex.Unlock()
		}
		s.Topic.Published.Receipt(Identity{s.Name, number}, positionOf(id))
	})
}

func keyOf(number int) string { return fmt.Sprintf("k%d", number*7919%1009%keys) }

func pause(ctx context.Context, time_ time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(time_):
	}
}
