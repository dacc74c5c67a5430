// Crash kills a server in the middle of random load, restarts it on the same folder and checks what its clients see.
//
// Promises checked, for every topic and subscription:
//   - every message with a receipt is delivered, at the position that the receipt named;
//   - first deliveries keep the order of each producer and key (except on Shared);
//   - what was acknowledged with a receipt is not delivered again after a restart;
//   - with deduplication, a producer that sends again leaves no duplicate;
//   - in the end nothing is left in the backlog.
//
// A campaign is some rounds on the same topics, closed by a complete check. Everything random comes from --seed.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

type config struct {
	binary, work   string
	url, admin     string
	rounds         int
	seed           uint64
	roundTime      time.Duration
	campaignRounds int
}

func main() {
	var c config
	flag.StringVar(&c.binary, "binary", "", "the geminga binary")
	flag.StringVar(&c.work, "work", "", "folder for the server's data (default: a temporary one); kept when a check fails")
	flag.StringVar(&c.url, "url", "", "instead of a server of its own: only the clients come and go (to judge the checks)")
	flag.StringVar(&c.admin, "admin", "", "with --url: the address of the admin REST API")
	flag.IntVar(&c.rounds, "rounds", 50, "kills")
	flag.Uint64Var(&c.seed, "seed", 0, "0 draws one")
	flag.DurationVar(&c.roundTime, "round-time", 1500*time.Millisecond, "longest time of load before a kill")
	flag.IntVar(&c.campaignRounds, "campaign-rounds", 10, "rounds on the same topics")
	flag.Parse()
	if c.seed == 0 {
		c.seed = rand.Uint64() >> 16
	}
	if c.work == "" {
		c.work = must(os.MkdirTemp("", "geminga-crash-"))
	}
	fmt.Printf("seed %d\n", c.seed)
	passed, err := run(c)
	if err != nil {
		fmt.Printf("FAILED with --seed %d: %v\n", c.seed, err)
		fmt.Printf("the server's folder is kept: %s\n", c.work)
		fmt.Printf("%d passed, 1 failed\n", passed)
		os.Exit(1)
	}
	os.RemoveAll(c.work)
	fmt.Printf("%d passed, 0 failed\n", passed)
}

// run plays all rounds and returns how many passed.
func run(c config) (passed int, err error) {
	server, err := newServer(c)
	if err != nil {
		return 0, err
	}
	defer server.kill()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		server.kill()
		os.Exit(130)
	}()
	random := rand.New(rand.NewPCG(c.seed, 0))
	begin := time.Now()
	for passed < c.rounds {
		rounds := min(c.campaignRounds, c.rounds-passed)
		campaign, err := newCampaign(server, random, c.roundTime)
		if err != nil {
			return passed, err
		}
		for range rounds {
			if err := campaign.round(); err != nil {
				return passed, fmt.Errorf("round %d: %w", passed+1, err)
			}
			passed++
		}
		if err := campaign.finish(); err != nil {
			return passed - rounds, fmt.Errorf("after round %d: %w", passed, err)
		}
		campaign.close()
		fmt.Printf("%5d rounds, %6.1f s, %s\n", passed, time.Since(begin).Seconds(), campaign.summary())
	}
	return passed, nil
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func tail(path string, size int64) string {
	content, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, int64(len(content))-size):])
}
