package workload

import (
	"strings"
	"testing"
)

var orderedKind = Kind{Name: "ordered", Ordered: true, Receipts: true}

func at(entry int64) Position { return Position{1, entry, 0} }

func TestEachBrokenPromiseIsNoticed(t *testing.T) {
	first, second := Identity{"p", 1}, Identity{"p", 2}
	for _, one := range []struct {
		name, complaint string
		deduplicated    bool
		happens         func(*Published, *Delivered)
	}{
		{"all is well", "", true, func(_ *Published, d *Delivered) {
			d.Received(1, first, "k", at(0))
			d.Received(1, second, "k", at(1))
			d.Acknowledged(5, []Position{at(0)})
			d.Received(1, first, "k", at(0)) // to a consumer that was there before the receipt
			d.Received(9, second, "k", at(1))
		}},
		{"out of order", "was delivered first", false, func(_ *Published, d *Delivered) {
			d.Received(1, second, "k", at(1))
			d.Received(1, first, "k", at(0))
		}},
		{"another key", "", false, func(_ *Published, d *Delivered) {
			d.Received(1, second, "k", at(1))
			d.Received(1, first, "other", at(0))
		}},
		{"a forgotten acknowledgement", "came again", false, func(_ *Published, d *Delivered) {
			d.Received(1, first, "k", at(0))
			d.Acknowledged(5, []Position{at(0)})
			d.Received(6, first, "k", at(0))
		}},
		{"a duplicate", "stored twice", true, func(_ *Published, d *Delivered) {
			d.Received(1, first, "k", at(0))
			d.Received(1, first, "k", at(1))
		}},
		{"a position that changes", "now holds", false, func(_ *Published, d *Delivered) {
			d.Received(1, first, "k", at(0))
			d.Received(1, second, "k", at(0))
		}},
		{"a receipt that goes back", "got a receipt", false, func(p *Published, _ *Delivered) {
			p.Receipt(first, at(1))
			p.Receipt(second, at(0))
		}},
	} {
		problems := &Violations{}
		one.happens(newPublished(problems), newDelivered("t", orderedKind, one.deduplicated, problems))
		err := problems.Err()
		if (err == nil) != (one.complaint == "") || err != nil && !strings.Contains(err.Error(), one.complaint) {
			t.Errorf("%s: %v", one.name, err)
		}
	}
}

func TestWhatHasAReceiptMustArriveAtItsPosition(t *testing.T) {
	problems := &Violations{}
	p, d := newPublished(problems), newDelivered("t", orderedKind, true, problems)
	lost, elsewhere, duplicate, arrived := Identity{"p", 1}, Identity{"p", 2}, Identity{"q", 3}, Identity{"p", 4}
	p.Receipt(lost, at(0))
	p.Receipt(elsewhere, at(1))
	p.Receipt(duplicate, Position{-1, -1, -1}) // says only that it is there
	p.Receipt(arrived, at(3))
	d.Received(1, elsewhere, "k", at(2))
	d.Received(1, arrived, "k", at(3))
	if missing := d.Missing(p); len(missing) != 3 {
		t.Errorf("missing are %v", missing)
	}
}

func TestNoCallAcknowledgesTwoDeliveriesOfAnEntry(t *testing.T) {
	for _, one := range []struct {
		positions []Position
		together  int
	}{
		{nil, 0},
		{[]Position{{1, 0, 0}, {1, 1, 0}, {1, 1, 1}, {1, 0, 2}}, 4},
		{[]Position{{1, 0, 1}, {1, 1, 0}, {1, 0, 0}}, 2}, // from the beginning again
		{[]Position{{1, 0, 1}, {2, 0, 1}, {1, 0, 1}}, 2}, // the last that was not acknowledged
	} {
		if together := untilOneComesAgain(one.positions); together != one.together {
			t.Errorf("%v: %d", one.positions, together)
		}
	}
}
