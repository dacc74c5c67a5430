package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
)

const (
	auditInterval = 10 * time.Second
	keptTopics    = 6 // so many that the nodes have entries of one at least
	keptMessages  = 100
	keptBytes     = 4000
	flippedMost   = 5
)

// checkRepair is for a cluster that is healed: what too few nodes have is copied, and what is damaged is repaired. As nobody may need
// what was hit during the run, bits flip once more, in entries that a node has to have.
func checkRepair(config config, c *cluster, random *rand.Rand) error {
	begin := time.Now()
	if err := c.awaitRepair(begin, config.bound); err != nil {
		return err
	}
	healed := time.Since(begin)
	kept, err := c.keep()
	if err != nil {
		return fmt.Errorf("messages to be kept: %w", err)
	}
	n, flipped, err := c.flipKept(random)
	if err != nil {
		return err
	}
	found, err := n.awaitRepair(len(flipped), config.bound)
	if err != nil {
		return fmt.Errorf("%s, bits of which had flipped (%v): %w", n.name, flipped, err)
	}
	if err := c.readKept(kept); err != nil {
		return err
	}
	fmt.Printf("nothing was left to repair %v after the last campaign; then bits flipped in %d entries on %s, and %d were found and repaired\n",
		healed.Round(time.Millisecond), len(flipped), n.name, found)
	return c.checkProcesses()
}

// hasGivenUp says whether what a node has is copied from others by now.
func (c *cluster) hasGivenUp(n *node) bool {
	for _, b := range c.brokers {
		var nodes []struct {
			Address string
			GivenUp bool `json:"given_up"`
		}
		if err := b.restWithin(time.Second, "GET", "admin/geminga/storage-nodes", nil, &nodes); err != nil {
			continue
		}
		for _, one := range nodes {
			if one.Address == n.address {
				return one.GivenUp
			}
		}
	}
	return false
}

// copies is how many entries each node that answers has copied since it started.
func (c *cluster) copies() map[string]int {
	counts := map[string]int{}
	for _, n := range c.nodes {
		if count, err := n.metric("replication_worker_NUM_ENTRIES_WRITTEN"); err == nil {
			counts[n.name] = count
		}
	}
	return counts
}

// awaitRepair waits for an audit that began after `since` and found every copy where it should be, and until no node knows of damage.
func (c *cluster) awaitRepair(since time.Time, limit time.Duration) error {
	for {
		left, err := c.leftToRepair(since)
		if err != nil {
			left = err.Error()
		}
		if left == "" {
			return nil
		}
		if time.Since(since) > limit {
			return fmt.Errorf("%v after everything was healed, not all is repaired: %s", limit, left)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (c *cluster) leftToRepair(since time.Time) (string, error) {
	var recovery struct {
		Ledgers   int `json:"ledgers_to_repair"`
		LastAudit *struct {
			Started         int64    `json:"started_ms"`
			UnderReplicated int      `json:"under_replicated"`
			Lost            []string `json:"lost"`
		} `json:"last_audit"`
	}
	if err := c.brokers[0].rest("GET", "admin/geminga/recovery", nil, &recovery); err != nil {
		return "", err
	}
	audit := recovery.LastAudit
	if recovery.Ledgers > 0 || audit == nil || audit.Started < since.UnixMilli() || audit.UnderReplicated > 0 || len(audit.Lost) > 0 {
		return fmt.Sprintf("%d ledgers to be repaired, last audit %+v", recovery.Ledgers, audit), nil
	}
	for _, n := range c.nodes {
		if damaged, err := n.metric("geminga_storage_damaged_entries"); err != nil || damaged > 0 {
			return fmt.Sprintf("%d damaged entries are left on %s", damaged, n.name), err
		}
		if passes, err := n.metric("geminga_scrub_passes"); err != nil || passes == 0 {
			return n.name + " has not looked at all it has", err
		}
	}
	return "", nil
}

// awaitRepair waits until the node has found and repaired so many damaged entries since it started, and returns how many.
func (n *node) awaitRepair(least int, limit time.Duration) (_ int, err error) {
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		var figures [3]int
		for i, name := range []string{"geminga_storage_damaged_entries_found", "geminga_storage_repaired_entries", "geminga_storage_damaged_entries"} {
			if figures[i], err = n.metric(name); err != nil {
				return 0, err
			}
		}
		found, repaired, left := figures[0], figures[1], figures[2]
		if found >= least && repaired >= found && left == 0 {
			return found, nil
		}
		if time.Since(begin) > limit {
			return found, fmt.Errorf("after %v, of %d damaged entries %d are found, %d repaired, %d left", limit, least, found, repaired, left)
		}
	}
}

// metric reads a figure without labels.
func (n *node) metric(name string) (int, error) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + n.http + "/metrics")
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(page)) {
		if words := strings.Fields(line); len(words) == 2 && words[0] == name {
			return strconv.Atoi(words[1])
		}
	}
	return 0, fmt.Errorf("%s has no metric %s", n.name, name)
}

func keptPayload(topic string, number int) []byte {
	head := fmt.Sprintf("kept|%s|%d|", topic, number)
	return append([]byte(head), bytes.Repeat([]byte("k"), keptBytes)...)
}

// keep publishes messages that a subscription goes on to need, and returns their topics.
func (c *cluster) keep() ([]string, error) {
	client, err := newClient(c.url())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var topics []string
	for t := range keptTopics {
		topic := fmt.Sprintf("persistent://public/default/kept-%d", t)
		topics = append(topics, topic)
		consumer, err := client.Subscribe(pulsar.ConsumerOptions{Topic: topic, SubscriptionName: "later", SubscriptionInitialPosition: pulsar.SubscriptionPositionEarliest})
		if err != nil {
			return nil, err
		}
		consumer.Close()
		producer, err := client.CreateProducer(pulsar.ProducerOptions{Topic: topic, DisableBatching: true})
		if err != nil {
			return nil, err
		}
		for number := range keptMessages {
			producer.SendAsync(context.Background(), &pulsar.ProducerMessage{Payload: keptPayload(topic, number)}, func(_ pulsar.MessageID, _ *pulsar.ProducerMessage, failed error) {
				if failed != nil {
					err = failed
				}
			})
		}
		if flushed := producer.Flush(); flushed != nil {
			err = flushed
		}
		producer.Close()
		if err != nil {
			return nil, err
		}
	}
	return topics, nil
}

// readKept fails unless all of it is there as it was published.
func (c *cluster) readKept(topics []string) error {
	client, err := newClient(c.url())
	if err != nil {
		return err
	}
	defer client.Close()
	for _, topic := range topics {
		consumer, err := client.Subscribe(pulsar.ConsumerOptions{Topic: topic, SubscriptionName: "later"})
		if err != nil {
			return err
		}
		for number := range keptMessages {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			message, err := consumer.Receive(ctx)
			cancel()
			if err != nil {
				return fmt.Errorf("%s, kept message %d: %w", topic, number, err)
			}
			if !bytes.Equal(message.Payload(), keptPayload(topic, number)) {
				return fmt.Errorf("%s: instead of kept message %d came %.100q", topic, number, message.Payload())
			}
		}
		consumer.Close()
	}
	return nil
}

// flipKept inverts a bit in some of the kept entries of a node, each on every place where it stands.
func (c *cluster) flipKept(random *rand.Rand) (*node, []string, error) {
	for _, at := range random.Perm(len(c.nodes)) {
		n := c.nodes[at]
		// A node begins a new segment when it starts: what it has got is not in the newest one then, nor when the next commits follow.
		if err := n.again(func() error { return nil }); err != nil {
			return n, nil, err
		}
		var flipped []string
		err := n.again(func() (err error) {
			flipped, err = n.disk.flipEntries(random, []byte("kept|"), flippedMost)
			return err
		})
		if err != nil || len(flipped) > 0 {
			return n, flipped, err
		}
	}
	return nil, nil, fmt.Errorf("no node has kept messages in a segment that is finished")
}

// again kills the node and starts it, with something done in between.
func (n *node) again(between func() error) error {
	if err := n.end(syscall.SIGKILL); err != nil {
		return err
	}
	if err := between(); err != nil {
		return err
	}
	if err := n.disk.survive(); err != nil {
		return err
	}
	return n.start()
}

// flipEntries inverts a bit behind some of the places where entries begin with `head`, in segments that are finished; up to the next `|` is
// the name of an entry. Returns the names.
func (d *disk) flipEntries(random *rand.Rand, head []byte, most int) ([]string, error) {
	segments, err := d.finishedSegments()
	if err != nil {
		return nil, err
	}
	type place struct {
		segment string
		at      int64
	}
	places := map[string][]place{}
	for _, segment := range segments {
		content, err := os.ReadFile(segment)
		if err != nil {
			return nil, err
		}
		for from := 0; ; {
			next := bytes.Index(content[from:], head)
			if next < 0 {
				break
			}
			from += next + len(head)
			topic, rest, _ := bytes.Cut(content[from:min(len(content), from+200)], []byte("|"))
			number, _, whole := bytes.Cut(rest, []byte("|"))
			if whole {
				name := fmt.Sprintf("%s %s", topic, number)
				places[name] = append(places[name], place{segment, int64(from + len(topic) + len(number) + 2)})
			}
		}
	}
	var names []string
	for name := range places {
		names = append(names, name)
	}
	slices.Sort(names)
	random.Shuffle(len(names), func(a, b int) { names[a], names[b] = names[b], names[a] })
	names = names[:min(most, len(names))]
	for _, name := range names {
		for _, one := range places[name] {
			file, err := os.OpenFile(one.segment, os.O_RDWR, 0)
			if err != nil {
				return names, err
			}
			err = invert(file, one.at+random.Int64N(keptBytes/2), 1<<random.IntN(8))
			file.Close()
			if err != nil {
				return names, err
			}
		}
	}
	return names, nil
}
