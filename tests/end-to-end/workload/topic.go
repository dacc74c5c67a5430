// Package workload makes random load on topics with the real Go client, and keeps the history that its promises are checked
// against. What happens to the servers meanwhile is somebody else's business.
package workload

import "github.com/apache/pulsar-client-go/pulsar"

// Topic is a topic with its subscriptions and what they have seen.
type Topic struct {
	Name          string
	deduplicated  bool
	Published     *Published
	Subscriptions []*Delivered // one for each of Kinds, and others behind
}

func NewTopic(name string, deduplicated bool, problems *Violations) *Topic {
	t := &Topic{Name: name, deduplicated: deduplicated, Published: newPublished(problems)}
	for _, k := range Kinds {
		t.Subscriptions = append(t.Subscriptions, newDelivered(name, k, deduplicated, problems))
	}
	return t
}

// Also adds a subscription of somebody else.
func (t *Topic) Also(k Kind, problems *Violations) *Delivered {
	d := newDelivered(t.Name, k, t.deduplicated, problems)
	t.Subscriptions = append(t.Subscriptions, d)
	return d
}

// Kind is a way to subscribe.
type Kind struct {
	Name      string
	Is        pulsar.SubscriptionType
	Consumers int
	Ordered   bool
	Receipts  bool
}

var Kinds = []Kind{
	{"exclusive", pulsar.Exclusive, 1, true, true},
	{"failover", pulsar.Failover, 2, true, true},
	{"shared", pulsar.Shared, 3, false, true},
	{"shared-without-receipts", pulsar.Shared, 2, false, false},
	{"key-shared", pulsar.KeyShared, 3, true, true},
}
