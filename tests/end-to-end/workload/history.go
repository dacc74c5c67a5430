package workload

import (
	"fmt"
	"io"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
)

// Identity names a message by who sent it, as its payload says.
type Identity struct {
	Producer string
	Number   int
}

// Position is where a message is stored. Batch is 0 in an entry that is no batch, which clients call 0 or -1.
type Position struct {
	Ledger, Entry int64
	Batch         int32
}

func (p Position) String() string { return fmt.Sprintf("%d:%d:%d", p.Ledger, p.Entry, p.Batch) }

func (p Position) before(q Position) bool {
	if p.Ledger != q.Ledger {
		return p.Ledger < q.Ledger
	}
	if p.Entry != q.Entry {
		return p.Entry < q.Entry
	}
	return p.Batch < q.Batch
}

func positionOf(id pulsar.MessageID) Position {
	return Position{id.LedgerID(), id.EntryID(), max(id.BatchIdx(), 0)}
}

// Violations collects what must not be; the first few are kept.
type Violations struct {
	mutex sync.Mutex
	lines []string
	total int
}

func (v *Violations) Add(format string, args ...any) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	v.total++
	if len(v.lines) < 10 {
		v.lines = append(v.lines, fmt.Sprintf(format, args...))
	}
}

// Err is nil as long as there are none.
func (v *Violations) Err() error {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	if v.total == 0 {
		return nil
	}
	return fmt.Errorf("%d violations:\n  %s", v.total, strings.Join(v.lines, "\n  "))
}

// Published is what a topic owes: the messages with a receipt. A receipt of a duplicate names no position.
type Published struct {
	mutex    sync.Mutex
	receipts map[Identity]*Position
	newest   map[string]Position
	problems *Violations
}

func newPublished(problems *Violations) *Published {
	return &Published{receipts: map[Identity]*Position{}, newest: map[string]Position{}, problems: problems}
}

// Receipt is called for each message that got one, in the order of a producer's messages.
func (p *Published) Receipt(m Identity, at Position) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if at.Ledger < 0 || at.Entry < 0 {
		if _, known := p.receipts[m]; !known {
			p.receipts[m] = nil
		}
		return
	}
	p.receipts[m] = &at
	if newest, any := p.newest[m.Producer]; any && !newest.before(at) {
		p.problems.Add("%v got a receipt at %v, behind %v of an earlier message of that producer", m, at, newest)
	}
	p.newest[m.Producer] = at
}

// Count is of messages with a receipt.
func (p *Published) Count() int {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return len(p.receipts)
}

// Delivered is the history of one subscription.
//
// Time is a number that only grows: a round, or nanoseconds. What a consumer gets that was made after an acknowledgement had its
// receipt must not be what was acknowledged; a consumer that was there before may still have had it in its queue.
type Delivered struct {
	Name         string // of topic and subscription
	Subscription string
	ordered      bool // first deliveries have to keep the order of producer and key
	receipts     bool // acknowledgements carry receipts
	deduplicated bool
	mutex        sync.Mutex
	at           map[Position]*delivery
	first        map[Identity]Position
	newest       map[string]int // by producer and key: the highest number delivered
	repeated     int
	problems     *Violations
}

type delivery struct {
	message Identity
	arrival
	again    []arrival
	done     int64 // when its acknowledgement got a receipt, 0: not yet
	together int   // acknowledged in the same call
}

// arrival is one delivery: when, and when its consumer was made.
type arrival struct {
	since int64
	when  time.Time
}

func (a arrival) String() string {
	return fmt.Sprintf("%s to a consumer of %d", a.when.UTC().Format("15:04:05.000000"), a.since)
}

func newDelivered(topic string, kind Kind, deduplicated bool, problems *Violations) *Delivered {
	return &Delivered{Name: topic + " " + kind.Name, Subscription: kind.Name, ordered: kind.Ordered, receipts: kind.Receipts, deduplicated: deduplicated,
		at: map[Position]*delivery{}, first: map[Identity]Position{}, newest: map[string]int{}, problems: problems}
}

// Received is called for each message that the application gets, in the order it gets them. `since` is when its consumer was
// made.
func (d *Delivered) Received(since int64, m Identity, key string, at Position) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if before, again := d.at[at]; again {
		d.repeated++
		if before.message != m {
			d.problems.Add("%s: position %v held %v and now holds %v", d.Name, at, before.message, m)
		}
		if before.done != 0 && before.done < since {
			d.problems.Add("%s: %v at %v came again to a consumer made at %d though its acknowledgement, with those of %d others, got a receipt at %d; it had come at %v, %v",
				d.Name, m, at, since, before.together-1, before.done, before.arrival, before.again)
		}
		before.again = append(before.again, arrival{since, time.Now()})
		return
	}
	d.at[at] = &delivery{message: m, arrival: arrival{since, time.Now()}}
	if where, known := d.first[m]; known {
		if d.deduplicated {
			d.problems.Add("%s: %v is stored twice, at %v and at %v", d.Name, m, where, at)
		}
		return
	}
	d.first[m] = at
	if d.ordered {
		lane := m.Producer + "/" + key
		if newest, any := d.newest[lane]; any && newest > m.Number {
			d.problems.Add("%s: %v of key %s was delivered first, at %v, after number %d", d.Name, m, key, at, newest)
		}
		d.newest[lane] = m.Number
	}
}

// Acknowledged is called when the acknowledgement of these positions has its receipt.
func (d *Delivered) Acknowledged(now int64, positions []Position) {
	if !d.receipts {
		return
	}
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for _, at := range positions {
		if one := d.at[at]; one != nil && one.done == 0 {
			one.done, one.together = now, len(positions)
		}
	}
}

// Missing lists what has a receipt and was not delivered (at the position of the receipt).
func (d *Delivered) Missing(p *Published) []string {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	d.mutex.Lock()
	defer d.mutex.Unlock()
	var out []string
	for m, at := range p.receipts {
		if at != nil && d.at[*at] == nil {
			out = append(out, fmt.Sprintf("%v at %v", m, *at))
		} else if _, seen := d.first[m]; at == nil && !seen {
			out = append(out, fmt.Sprintf("%v", m))
		}
	}
	sort.Strings(out)
	return out
}

// Counts are of deliveries, and of those that came before.
func (d *Delivered) Counts() (deliveries, repeated int) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return len(d.at), d.repeated
}

// Dump writes a line for each receipt.
func (p *Published) Dump(to io.Writer) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for m, at := range p.receipts {
		fmt.Fprintf(to, "receipt %s %d %v\n", m.Producer, m.Number, at)
	}
}

// Dump writes a line for each first delivery, by position.
func (d *Delivered) Dump(to io.Writer) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	positions := make([]Position, 0, len(d.at))
	for at := range d.at {
		positions = append(positions, at)
	}
	sort.Slice(positions, func(i, j int) bool { return positions[i].before(positions[j]) })
	for _, at := range positions {
		one := d.at[at]
		fmt.Fprintf(to, "delivery %s %v %s %d at %v, %v, acknowledged %d\n", d.Subscription, at, one.message.Producer, one.message.Number,
			one.arrival, one.again, one.done)
	}
}
