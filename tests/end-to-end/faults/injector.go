package main

import (
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
	victim  *node
	log     *os.File

	mutex   sync.Mutex
	busy    map[string]bool
	active  int
	counts  map[string]int
	failure error
	healing sync.WaitGroup
}

// newInjector is for a run of that duration: in its second half, what has not occurred yet comes first.
func newInjector(c *cluster, random *rand.Rand, most int, only string, duration time.Duration) (*injector, error) {
	log, err := os.Create(filepath.Join(c.folder, "faults.log"))
	if err != nil {
		return nil, err
	}
	i := &injector{cluster: c, random: random, most: most, lateAt: time.Now().Add(duration / 2), victim: pick(random, c.nodes), log: log, busy: map[string]bool{}, counts: map[string]int{}}
	for _, k := range kindsOf(c) {
		if only == "" || slices.Contains(strings.Split(only, ","), k.name) {
			i.kinds = append(i.kinds, k)
		}
	}
	if len(i.kinds) == 0 {
		return nil, fmt.Errorf("none of the faults %q can be had here", only)
	}
	return i, nil
}

// run injects until the time is over or a promise is broken, and returns when everything is healed.
func (i *injector) run(until time.Time, broken func() error) error {
	for time.Now().Before(until) && i.err() == nil && broken() == nil {
		time.Sleep(between(i.random, 100, 2500))
		i.next()
	}
	i.healing.Wait()
	return i.err()
}

func (i *injector) next() {
	kinds := i.kinds
	if late := i.missing(); time.Now().After(i.lateAt) && len(late) > 0 {
		kinds = late // nothing else begins, so that its targets become free
	}
	f := i.draw(kinds)
	i.mutex.Lock()
	defer i.mutex.Unlock()
	if f == nil || i.active >= i.most {
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
	i.active++
	i.counts[f.kind]++
	i.healing.Go(func() { i.play(f) })
}

// missing are the kinds that have not occurred.
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
	if err != nil && i.failure == nil {
		i.failure = fmt.Errorf("%s %s: %w", f.kind, f.text, err)
	}
	i.active--
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

// flip kills the one node whose bits may flip, flips some, and starts it again.
func (i *injector) flip(r *rand.Rand) *fault {
	n, own, bits := i.victim, rand.New(rand.NewPCG(r.Uint64(), 0)), 1+r.IntN(4)
	f := &fault{targets: []string{n.name}, text: n.name}
	f.begin = func() error {
		if err := n.end(syscall.SIGKILL); err != nil {
			return err
		}
		flipped, err := n.disk.flip(own, bits)
		f.text += fmt.Sprintf(": %v", flipped)
		if err != nil {
			return err
		}
		return n.disk.survive()
	}
	f.heal = n.start
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
	sort.Strings(names)
	return fmt.Sprintf("%d faults: %s", total, strings.Join(names, ", "))
}
