package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"
)

// fault is something that goes wrong for a while. Everything random is drawn before it begins.
type fault struct {
	kind    string
	text    string
	targets []string // names that no other fault may have at the same time
	lasts   time.Duration
	begin   func() error // errNoEffect ends it at once
	heal    func() error // errNoEffect: there was none
}

// errNoEffect is for a fault that has found nothing to harm: it is not counted.
var errNoEffect = errors.New("no effect")

// kind draws a fault; nil when it cannot be had now.
type kind struct {
	name   string
	weight int
	needs  bool // what it needs is there
	draw   func(*injector, *rand.Rand) *fault
}

func kindsOf(c *cluster) []kind {
	shimmed, mounted, isolated := c.nodes[0].disk.journal != "", c.nodes[0].disk.own != "", c.network.isolated
	return []kind{
		{"broker-kill", 12, true, func(_ *injector, r *rand.Rand) *fault { return kill(pick(r, c.brokers).process, r) }},
		{"broker-pause", 8, true, func(_ *injector, r *rand.Rand) *fault { return sleep(pick(r, c.brokers).process, r) }},
		{"node-kill", 12, true, func(_ *injector, r *rand.Rand) *fault { return killNode(pick(r, c.nodes), r) }},
		{"node-lost", 3, true, func(i *injector, r *rand.Rand) *fault { return i.lose(pick(r, c.nodes), r) }},
		{"node-pause", 8, true, func(_ *injector, r *rand.Rand) *fault { return sleep(pick(r, c.nodes).process, r) }},
		{"node-stutter", 5, true, func(_ *injector, r *rand.Rand) *fault { return stutter(pick(r, c.nodes).process, r) }},
		{"metadata-kill", 4, true, func(_ *injector, r *rand.Rand) *fault { return kill(c.postgres, r) }},
		{"zone-kill", 3, true, func(_ *injector, r *rand.Rand) *fault { return killZone(c, r) }},
		{"bit-flip", 5, true, func(i *injector, r *rand.Rand) *fault { return i.flip(r) }},
		{"power-loss", 10, shimmed, func(_ *injector, r *rand.Rand) *fault { return losePower([]*node{pick(r, c.nodes)}, r) }},
		{"power-loss-of-all-nodes", 2, shimmed, func(_ *injector, r *rand.Rand) *fault { return losePower(c.nodes, r) }},
		{"slow-disk", 5, shimmed, func(_ *injector, r *rand.Rand) *fault {
			return misbehave(pick(r, c.nodes), manners{syncDelayMs: uint32(20 + r.IntN(400))}, r)
		}},
		{"io-errors", 5, shimmed, func(_ *injector, r *rand.Rand) *fault {
			return misbehave(pick(r, c.nodes), manners{writesFail: uint32(r.IntN(300)), syncsFail: uint32(r.IntN(300))}, r)
		}},
		{"read-errors", 5, shimmed, func(_ *injector, r *rand.Rand) *fault {
			return misbehave(pick(r, c.nodes), manners{readsFail: uint32(1 + r.IntN(1000))}, r)
		}},
		{"disk-full", 4, mounted, func(_ *injector, r *rand.Rand) *fault { return fillDisk(pick(r, c.nodes), r) }},
		{"partition", 10, isolated, func(_ *injector, r *rand.Rand) *fault { return partition(c, r) }},
		{"isolation", 4, isolated, func(_ *injector, r *rand.Rand) *fault { return isolate(c, r) }},
		{"connections-cut", 8, isolated, func(_ *injector, r *rand.Rand) *fault { return cutConnections(c, r) }},
	}
}

func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }

// between draws a duration of so many milliseconds.
func between(random *rand.Rand, least, most int) time.Duration {
	return time.Duration(least+random.IntN(most-least)) * time.Millisecond
}

func kill(p *process, r *rand.Rand) *fault {
	return &fault{targets: []string{p.name}, text: p.name, lasts: between(r, 0, 7000),
		begin: func() error { return p.end(p.killed) }, heal: p.start}
}

// killNode is kill, after which the kernel still has what was not synced.
func killNode(n *node, r *rand.Rand) *fault {
	f := kill(n.process, r)
	f.heal = func() error {
		if err := n.disk.survive(); err != nil {
			return err
		}
		return n.start()
	}
	return f
}

// killZone kills all nodes of a zone.
func killZone(c *cluster, r *rand.Rand) *fault {
	zone := r.IntN(zones)
	var members []*fault
	f := &fault{text: fmt.Sprintf("zone-%d", zone), lasts: between(r, 500, 7000)}
	for number, n := range c.nodes {
		if number%zones == zone {
			members = append(members, killNode(n, r))
			f.targets = append(f.targets, n.name)
		}
	}
	f.begin = func() error { return each(members, func(one *fault) error { return one.begin() }) }
	f.heal = func() error { return each(members, func(one *fault) error { return one.heal() }) }
	return f
}

func each[T any](all []T, do func(T) error) error {
	for _, one := range all {
		if err := do(one); err != nil {
			return err
		}
	}
	return nil
}

// sleep stops a process, for shorter or longer than the session of a broker.
func sleep(p *process, r *rand.Rand) *fault {
	return &fault{targets: []string{p.name}, text: p.name, lasts: between(r, 300, 8000),
		begin: func() error { p.signal(syscall.SIGSTOP); return nil },
		heal:  func() error { p.signal(syscall.SIGCONT); return nil }}
}

// stutter lets a process run in short pieces.
func stutter(p *process, r *rand.Rand) *fault {
	stop, stopped := make(chan struct{}), make(chan struct{})
	on, off := between(r, 5, 60), between(r, 20, 300)
	begin := func() error {
		go func() {
			defer close(stopped)
			for {
				p.signal(syscall.SIGSTOP)
				time.Sleep(off)
				p.signal(syscall.SIGCONT)
				select {
				case <-stop:
					return
				case <-time.After(on):
				}
			}
		}()
		return nil
	}
	return &fault{targets: []string{p.name}, text: fmt.Sprintf("%s runs %v, stands %v", p.name, on, off), lasts: between(r, 1000, 8000),
		begin: begin, heal: func() error { close(stop); <-stopped; return nil }}
}

// losePower kills nodes at once and takes back what they had not synced.
func losePower(nodes []*node, r *rand.Rand) *fault {
	own := rand.New(rand.NewPCG(r.Uint64(), 0))
	lost := 0
	f := &fault{lasts: between(r, 100, 4000)}
	for _, n := range nodes {
		f.targets = append(f.targets, n.name)
	}
	f.text = fmt.Sprint(f.targets)
	f.begin = func() error {
		if err := each(nodes, func(n *node) error { return n.end(syscall.SIGKILL) }); err != nil {
			return err
		}
		return each(nodes, func(n *node) error {
			sectors, err := n.disk.losePower(own)
			lost += sectors
			f.text += fmt.Sprintf(", %s lost %d sectors", n.name, sectors)
			return err
		})
	}
	f.heal = func() error {
		err := each(nodes, func(n *node) error { return n.start() })
		if err == nil && lost == 0 {
			return errNoEffect
		}
		return err
	}
	return f
}

func misbehave(n *node, how manners, r *rand.Rand) *fault {
	var before uint32
	return &fault{targets: []string{n.name}, lasts: between(r, 500, 6000), text: fmt.Sprintf("%s: %v", n.name, how),
		begin: func() (err error) {
			if before, err = n.disk.misbehaved(); err != nil {
				return err
			}
			return n.disk.misbehave(how)
		},
		heal: func() error {
			if err := n.disk.misbehave(manners{}); err != nil {
				return err
			}
			after, err := n.disk.misbehaved()
			if err == nil && after == before {
				return errNoEffect
			}
			return err
		}}
}

func fillDisk(n *node, r *rand.Rand) *fault {
	had := false
	return &fault{targets: []string{n.name}, text: n.name, lasts: between(r, 2000, 10_000),
		begin: func() (err error) {
			had, err = n.disk.fill()
			return err
		},
		heal: func() error {
			if err := n.disk.empty(); err != nil || had {
				return err
			}
			return errNoEffect
		}}
}

// partition blocks some of the ways between two hosts: one, or both.
func partition(c *cluster, r *rand.Rand) *fault {
	a, b := pair(c, r)
	ways := [][2]*host{{a, b}, {b, a}}
	text := fmt.Sprintf("%s and %s", a.name, b.name)
	if draw := r.IntN(4); draw < 2 {
		ways = ways[draw : draw+1]
		text = fmt.Sprintf("from %s to %s", ways[0][0].name, ways[0][1].name)
	}
	return &fault{targets: []string{"between " + a.name + " " + b.name}, text: text, lasts: between(r, 500, 9000),
		begin: func() error { return each(ways, func(way [2]*host) error { return block(way[0], way[1]) }) },
		heal:  func() error { return each(ways, func(way [2]*host) error { return unblock(way[0], way[1]) }) }}
}

// pair draws two hosts that speak with each other, in the order of the network.
func pair(c *cluster, r *rand.Rand) (*host, *host) {
	b := pick(r, c.brokers).host
	switch r.IntN(5) {
	case 0:
		return c.postgres.host, b
	case 1:
		return outside, b
	default:
		return pick(r, c.nodes).host, b
	}
}

// isolate blocks all ways between a process and whom it speaks with, clients too or not.
func isolate(c *cluster, r *rand.Rand) *fault {
	all := c.processes()
	one := pick(r, all)
	var others []*host
	text := one.name
	if r.IntN(2) == 0 {
		others = append(others, outside)
	} else {
		text += ", not from clients"
	}
	for _, p := range all {
		if p != one {
			others = append(others, p.host)
		}
	}
	f := &fault{text: text, lasts: between(r, 500, 9000)}
	for _, other := range others { // as `partition` names them, in whichever order
		f.targets = append(f.targets, "between "+other.name+" "+one.host.name, "between "+one.host.name+" "+other.name)
	}
	both := func(do func(from, to *host) error) func() error {
		return func() error {
			return each(others, func(other *host) error {
				if err := do(one.host, other); err != nil {
					return err
				}
				return do(other, one.host)
			})
		}
	}
	f.begin, f.heal = both(block), both(unblock)
	return f
}

func cutConnections(c *cluster, r *rand.Rand) *fault {
	a, b := pair(c, r)
	return &fault{text: fmt.Sprintf("%s and %s", a.name, b.name), heal: func() error { return nil },
		begin: func() error {
			broken, err := cut(b, a)
			if err == nil && !broken {
				return errNoEffect
			}
			return err
		}}
}
