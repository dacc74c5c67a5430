package main

import (
	"fmt"
	"sort"
	"strings"
	"sync"
)

// identity names a message by who sent it, as its payload says.
type identity struct {
	producer string
	number   int
}

type position struct {
	ledger, entry int64
	batch         int32
}

func (p position) String() string { return fmt.Sprintf("%d:%d:%d", p.ledger, p.entry, p.batch) }

func (p position) before(q position) bool {
	if p.ledger != q.ledger {
		return p.ledger < q.ledger
	}
	if p.entry != q.entry {
		return p.entry < q.entry
	}
	return p.batch < q.batch
}

// violations collects what must not be; the first few are kept.
type violations struct {
	mutex sync.Mutex
	lines []string
	total int
}

func (v *violations) add(format string, args ...any) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	v.total++
	if len(v.lines) < 10 {
		v.lines = append(v.lines, fmt.Sprintf(format, args...))
	}
}

func (v *violations) err() error {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	if v.total == 0 {
		return nil
	}
	return fmt.Errorf("%d violations:\n  %s", v.total, strings.Join(v.lines, "\n  "))
}

// published is what a topic owes: the messages with a receipt. A receipt of a duplicate names no position.
type published struct {
	mutex    sync.Mutex
	receipts map[identity]*position
	newest   map[string]position
	problems *violations
}

func newPublished(problems *violations) *published {
	return &published{receipts: map[identity]*position{}, newest: map[string]position{}, problems: problems}
}

func (p *published) receipt(m identity, at position) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if at.ledger < 0 || at.entry < 0 {
		if _, known := p.receipts[m]; !known {
			p.receipts[m] = nil
		}
		return
	}
	p.receipts[m] = &at
	if newest, any := p.newest[m.producer]; any && !newest.before(at) {
		p.problems.add("%v got a receipt at %v, behind %v of an earlier message of that producer", m, at, newest)
	}
	p.newest[m.producer] = at
}

// delivered is the history of one subscription.
type delivered struct {
	mutex        sync.Mutex
	name         string
	ordered      bool // first deliveries have to keep the order of producer and key
	receipts     bool // acknowledgements carry receipts
	deduplicated bool
	at           map[position]*delivery
	first        map[identity]position
	newest       map[string]int // by producer and key: the highest number delivered
	repeated     int
	problems     *violations
}

type delivery struct {
	message identity
	doneIn  int // the round in which its acknowledgement got a receipt, 0: none yet
}

func newDelivered(name string, kind kind, problems *violations) *delivered {
	return &delivered{name: name, ordered: kind.ordered, receipts: kind.receipts, at: map[position]*delivery{},
		first: map[identity]position{}, newest: map[string]int{}, problems: problems}
}

// received is called for each message that the application gets, in the order it gets them.
func (d *delivered) received(round int, m identity, key string, at position) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if before, again := d.at[at]; again {
		d.repeated++
		if before.message != m {
			d.problems.add("%s: position %v held %v and now holds %v", d.name, at, before.message, m)
		}
		if before.doneIn != 0 && before.doneIn < round {
			d.problems.add("%s: %v at %v came again in round %d though its acknowledgement got a receipt in round %d",
				d.name, m, at, round, before.doneIn)
		}
		return
	}
	d.at[at] = &delivery{message: m}
	if where, known := d.first[m]; known {
		if d.deduplicated {
			d.problems.add("%s: %v is stored twice, at %v and at %v", d.name, m, where, at)
		}
		return
	}
	d.first[m] = at
	if d.ordered {
		lane := m.producer + "/" + key
		if newest, any := d.newest[lane]; any && newest > m.number {
			d.problems.add("%s: %v of key %s was delivered first after number %d", d.name, m, key, newest)
		}
		d.newest[lane] = m.number
	}
}

// acknowledged is called when the acknowledgement of these positions has its receipt.
func (d *delivered) acknowledged(round int, positions []position) {
	if !d.receipts {
		return
	}
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for _, at := range positions {
		if one := d.at[at]; one != nil && one.doneIn == 0 {
			one.doneIn = round
		}
	}
}

// missing lists what has a receipt and was not delivered (at the position of the receipt).
func (d *delivered) missing(p *published) []string {
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
