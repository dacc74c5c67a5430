// Faults runs a cluster of processes (PostgreSQL, six storage nodes in three zones, three brokers) under load by real clients,
// injects faults, several at a time, moves and splits bundles, and checks what the clients see.
//
// Promises checked, for every topic and subscription:
//   - every message with a receipt is delivered, at the position that the receipt named;
//   - first deliveries keep the order of each producer and key (except on Shared);
//   - what was acknowledged with a receipt is not delivered to a consumer that was made later;
//   - with deduplication, a producer that sends again leaves no duplicate;
//   - within a bound after the last fault, all that was sent has its receipt, all is consumed and nothing is left in the backlog;
//   - at the end no ledger has too few copies, no damaged entry is left on a node, and bits that flip in entries that are needed are found and
//     repaired;
//   - no process ends by itself or panics.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// wholeRun is how long faults are injected at least for every kind to have its turn.
const wholeRun = 10 * time.Minute

type config struct {
	binary, work       string
	only, without      string
	python, java       string
	duration, campaign time.Duration
	bound, pause       time.Duration
	seed               uint64
	most               int
}

func main() {
	var c config
	flag.StringVar(&c.binary, "binary", "", "the geminga binary")
	flag.StringVar(&c.work, "work", "", "folder for everything (default: a temporary one); kept when a check fails")
	flag.StringVar(&c.python, "python", "", "a Python with pulsar-client, for clients in that language")
	flag.StringVar(&c.java, "java", "", "a class path with Pulsar's Java client, for clients in that language")
	flag.StringVar(&c.only, "only", "", "kinds of faults, separated by commas; all when empty")
	flag.StringVar(&c.without, "without", "", "kinds of faults that need not come, separated by commas")
	flag.DurationVar(&c.duration, "duration", 2*time.Minute, "time under faults")
	flag.DurationVar(&c.campaign, "campaign", 3*time.Minute, "longest time on the same topics; each is closed by a complete check")
	flag.DurationVar(&c.bound, "bound", 2*time.Minute, "until when all is consumed, from the last fault on")
	flag.DurationVar(&c.pause, "pause", 100*time.Millisecond, "longest time between two bursts of a producer")
	flag.Uint64Var(&c.seed, "seed", 0, "0 draws one")
	flag.IntVar(&c.most, "most", 3, "faults at a time")
	flag.Parse()
	if c.seed == 0 {
		c.seed = rand.Uint64() >> 16
		os.Args = append(os.Args, "--seed", fmt.Sprint(c.seed))
	}
	if code, entered := enterNamespaces(); entered {
		os.Exit(code)
	}
	os.Exit(run(c))
}

func run(c config) int {
	if c.work == "" {
		folder, err := os.MkdirTemp("", "geminga-faults-")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		c.work = folder
	}
	os.MkdirAll(c.work, 0o755)
	os.Chmod(c.work, 0o755) // PostgreSQL's user has to come in
	fmt.Printf("seed %d\n", c.seed)
	passed, err := play(c)
	if err != nil {
		fmt.Printf("FAILED with --seed %d: %v\n", c.seed, err)
		fmt.Printf("logs, histories, faults.log and disks are kept: %s\n", c.work)
		fmt.Printf("%d passed, 1 failed\n", passed)
		return 1
	}
	os.RemoveAll(c.work)
	fmt.Printf("%d passed, 0 failed\n", passed)
	return 0
}

// play runs campaigns until the time is over, and returns how many passed.
func play(c config) (passed int, err error) {
	random := rand.New(rand.NewPCG(c.seed, 0))
	cluster, err := newCluster(c.binary, c.work)
	if cluster != nil {
		defer cluster.close()
	}
	if err != nil {
		return 0, err
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		cluster.close()
		os.Exit(130)
	}()
	injector, err := newInjector(cluster, random, c.most, c.only, c.without, c.duration)
	if err != nil {
		return 0, err
	}
	for left := c.duration; left > 0; left -= c.campaign {
		begin := time.Now()
		k, err := newCampaign(c, cluster, random, passed)
		if err == nil {
			err = injector.run(time.Now().Add(min(left, c.campaign)), k.problems.Err)
		}
		if err == nil {
			err = k.problems.Err()
		}
		if err == nil {
			err = k.finish(injector.note)
		}
		messages, deliveries, repeated := k.counts()
		fmt.Printf("campaign %d, %.0f s: %d messages with receipt, %d deliveries, %d repeated; so far %s; %s\n", passed+1, time.Since(begin).Seconds(),
			messages, deliveries, repeated, injector.summary(), k.mover.summary())
		if err != nil {
			fmt.Printf("the last faults:\n%s\n", injector.recent())
			k.keep(c.work)
			k.close()
			return passed, err
		}
		k.close()
		passed++
	}
	if missing := injector.missing(); c.duration >= wholeRun && len(missing) > 0 {
		return passed, fmt.Errorf("%d kinds of faults have not occurred with an effect in %v, %s among them", len(missing), c.duration, missing[0].name)
	}
	return passed, checkRepair(c, cluster, random)
}
