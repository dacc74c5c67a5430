package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
)

const timeForm = "2006-01-02T15:04:05.000000Z"

// injector begins faults at random moments, several at a time, and heals each after its time.
//
// What may come together: whatever heals, in any number, as storage nodes synced what they answered; that can stop the cluster for a
// while, but loses nothing. Bits flip on one node only in the whole run: with one of an entry's copies damaged, another one must stay good
// until it is repaired.
type injector struct {
	cluster *cluster
	random  *rand.Rand
	kinds   []kind
	most    int // at a time
	lateAt  time.Time
	until   time.Time // when the last fault of this campaign may begin
	victim  *node
	log     *os.File

	mutex   sync.Mutex
	busy    map[string]bool
	playing map[string]int // of each kind
	counts  map[string]int // of those that had an effect
	idle    map[string]int // of those that had none
	failure error
	healing sync.WaitGroup
}

// newInjector is for a run of that duration: in its second half, what has not occurred yet comes first. Kinds are chosen with `only`, or all but
// those of `without`.
func newInjector(c *cluster, random *rand.Rand, most int, only, without string, duration time.Duration) (*injector, error) {
	log, err := os.Create(filepath.Join(c.folder, "faults.log"))
	if err != nil {
		return nil, err
	}
	i := &injector{cluster: c, random: random, most: most, lateAt: time.Now().Add(duration / 2), victim: pick(random, c.nodes), log: log, busy: map[string]bool{}, playing: map[string]int{}, counts: map[string]int{}, idle: map[string]int{}}
	all := kindsOf(c)
	var unmet []string
	for _, k := range all {
		if only != "" && !slices.Contains(strings.Split(only, ","), k.name) || slices.Contains(strings.Split(without, ","), k.name) {
			continue
		}
		if k.needs {
			i.kinds = append(i.kinds, k)
		} else {
			unmet = append(unmet, k.name)
		}
	}
	for _, name := range strings.FieldsFunc(only+","+without, func(r rune) bool { return r == ',' }) {
		if !slices.ContainsFunc(all, func(k kind) bool { return k.name == name }) {
			return nil, fmt.Errorf("there is no kind of fault %q", name)
		}
	}
	if text := strings.Join(unmet, ","); text != "" && duration >= wholeRun {
		return nil, fmt.Errorf("cannot be had here (they need root, or cc): --without %s says that this is meant", text)
	} else if text != "" {
		fmt.Printf("skipped, as they need root, or cc: %s\n", text)
	}
	if len(i.kinds) == 0 {
		return nil, fmt.Errorf("no kind of fault is left")
	}
	return i, nil
}

// run injects until the time is over or a promise is broken, and returns when everything is healed.
func (i *injector) run(until time.Time, broken func() error) error {
	i.until = until
	for time.Now().Before(until) && i.err() == nil && broken() == nil {
		time.Sleep(between(i.random, 100, 2500))
		i.next()
	}
	i.healing.Wait()
	return i.err()
}

func (i *injector) next() {
	kinds := i.kinds
	if late := slices.DeleteFunc(i.missing(), func(k kind) bool { return i.playing[k.name] > 0 }); time.Now().After(i.lateAt) && len(late) > 0 {
		kinds = late // nothing else begins, so that its targets become free
	}
	f := i.draw(kinds)
	if f == nil {
		f = i.draw(i.kinds)
	}
	i.mutex.Lock()
	defer i.mutex.Unlock()
	active := 0
	for _, count := range i.playing {
		active += count
	}
	if f == nil || active >= i.most {
		return
	}
	for _, target := range f.targets {
		if i.busy[target] {
			return
		}
	}
	for _, target := range f.targets {
		i.busy[target] = true
	}
	i.playing[f.kind]++
	i.healing.Go(func() { i.play(f) })
}

// missing are the kinds that have not occurred with an effect.
func (i *injector) missing() []kind {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	var none []kind
	for _, k := range i.kinds {
		if i.counts[k.name] == 0 {
			none = append(none, k)
		}
	}
	return none
}

func (i *injector) draw(kinds []kind) *fault {
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	at := i.random.IntN(total)
	for _, k := range kinds {
		if at -= k.weight; at < 0 {
			f := k.draw(i, i.random)
			if f != nil {
				f.kind = k.name
			}
			return f
		}
	}
	return nil
}

func (i *injector) play(f *fault) {
	i.note("begins %s %s, for %v", f.kind, f.text, f.lasts)
	err := f.begin()
	if err == nil {
		time.Sleep(f.lasts)
		i.note("heals %s %s", f.kind, f.text)
		err = f.heal()
		i.note("healed %s", f.kind)
	}
	i.mutex.Lock()
	defer i.mutex.Unlock()
	if errors.Is(err, errNoEffect) {
		i.note("had no effect: %s %s", f.kind, f.text)
		i.idle[f.kind]++
	} else if err == nil {
		i.counts[f.kind]++
	} else if i.failure == nil {
		i.failure = fmt.Errorf("%s %s: %w", f.kind, f.text, err)
	}
	i.playing[f.kind]--
	for _, target := range f.targets {
		delete(i.busy, target)
	}
}

// recent is the end of the log, for a reader who has nothing else of this run.
func (i *injector) recent() string {
	return tail(i.log.Name(), 6000)
}

func (i *injector) note(format string, args ...any) {
	fmt.Fprintf(i.log, "%s %s\n", time.Now().UTC().Format(timeForm), fmt.Sprintf(format, args...))
}

func (i *injector) err() error {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	return i.failure
}

const (
	lostAfter = 5 * time.Second // as the nodes are told; faults of a node can last longer
	lostMost  = 40 * time.Second
)

// lose kills a node and keeps it away until it is given up and some of what it had is copied to others. Nil towards the end of a campaign: it
// takes long.
func (i *injector) lose(n *node, r *rand.Rand) *fault {
	if time.Until(i.until) < lostMost {
		return nil
	}
	f, copied := killNode(n, r), false
	f.targets = append(f.targets, "the one that is lost")
	begin, heal := f.begin, f.heal
	f.begin = func() error {
		if err := begin(); err != nil {
			return err
		}
		since := time.Now()
		for !i.cluster.hasGivenUp(n) && time.Since(since) < lostMost {
			time.Sleep(500 * time.Millisecond)
		}
		for before := i.cluster.copies(); !copied && time.Since(since) < lostMost; time.Sleep(500 * time.Millisecond) {
			now := i.cluster.copies()
			for name, count := range before {
				copied = copied || now[name] > count
			}
			before = now
		}
		return nil
	}
	f.heal = func() error {
		if err := heal(); err != nil || copied {
			return err
		}
		return errNoEffect
	}
	return f
}

// flip kills the one node whose bits may flip, flips some, and starts it again.
func (i *injector) flip(r *rand.Rand) *fault {
	n, own, bits := i.victim, rand.New(rand.NewPCG(r.Uint64(), 0)), 1+r.IntN(4)
	f, any := &fault{targets: []string{n.name}, text: n.name}, false
	f.begin = func() error {
		if err := n.end(syscall.SIGKILL); err != nil {
			return err
		}
		flipped, err := n.disk.flip(own, bits)
		f.text += fmt.Sprintf(": %v", flipped)
		any = len(flipped) > 0
		if err != nil {
			return err
		}
		return n.disk.survive()
	}
	f.heal = func() error {
		if err := n.start(); err != nil || any {
			return err
		}
		return errNoEffect
	}
	return f
}

func (i *injector) summary() string {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	var names []string
	total := 0
	for name, count := range i.counts {
		names = append(names, fmt.Sprintf("%s %d", name, count))
		total += count
	}
	for name, count := range i.idle {
		names = append(names, fmt.Sprintf("%s %d without effect", name, count))
	}
	sort.Strings(names)
	return fmt.Sprintf("%d faults: %s", total, strings.Join(names, ", "))
}
