package main

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// bareCluster is one of a machine that has nothing of what some faults need.
func bareCluster(t *testing.T) *cluster {
	return &cluster{folder: t.TempDir(), network: &network{}, nodes: []*node{{process: &process{name: "node"}}}}
}

func TestOnlyFaultsWithAnEffectAreCounted(t *testing.T) {
	i, err := newInjector(bareCluster(t), rand.New(rand.NewPCG(1, 0)), 3, "node-kill,bit-flip,zone-kill", "", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	well := func() error { return nil }
	none := func() error { return errNoEffect }
	i.play(&fault{kind: "node-kill", begin: well, heal: well})
	i.play(&fault{kind: "bit-flip", begin: none, heal: func() error { return errors.New("heals what has not begun") }})
	i.play(&fault{kind: "zone-kill", begin: well, heal: none})
	var missing []string
	for _, k := range i.missing() {
		missing = append(missing, k.name)
	}
	slices.Sort(missing)
	if i.err() != nil || !slices.Equal(missing, []string{"bit-flip", "zone-kill"}) {
		t.Errorf("missing are %v, %v", missing, i.err())
	}
	if text := i.summary(); text != "1 faults: bit-flip 1 without effect, node-kill 1, zone-kill 1 without effect" {
		t.Error(text)
	}
}

func TestAWholeRunHasAllKindsOrSaysWhichItIsWithout(t *testing.T) {
	for _, one := range []struct {
		only, without, complaint string
		duration                 time.Duration
	}{
		{"", "", "", time.Minute},
		{"", "", "disk-full", wholeRun},
		{"", "power-loss,power-loss-of-all-nodes,slow-disk,io-errors,read-errors,disk-full,partition,isolation,connections-cut", "", wholeRun},
		{"broker-kill", "", "", wholeRun},
		{"broker-kill,partition", "", "partition", wholeRun},
		{"broker-kil", "", "broker-kil", time.Minute},
		{"", "broker-kil", "broker-kil", time.Minute},
		{"broker-kill", "broker-kill", "left", time.Minute},
	} {
		_, err := newInjector(bareCluster(t), rand.New(rand.NewPCG(1, 0)), 3, one.only, one.without, one.duration)
		if (err == nil) != (one.complaint == "") || err != nil && !strings.Contains(err.Error(), one.complaint) {
			t.Errorf("%+v: %v", one, err)
		}
	}
}
