package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// writer does what it is told, each a letter: `s` syncs its file, `r` reads it, another one fills both sectors of it with itself.
const writer = `
import os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for letter in sys.argv[2]:
    if letter == "s":
        os.fdatasync(file)
    elif letter == "r":
        os.pread(file, 1, 0)
    else:
        os.pwrite(file, letter.encode() * 1024, 0)
`

func TestWhatWasNotSyncedIsTakenBack(t *testing.T) {
	for _, one := range []struct{ lives, left string }{
		{"asb", "a"}, {"asbs", "b"}, {"asbsc", "b"}, {"asbcd", "a"}, {"asbscs", "c"},
		{"asb|c", "a"}, // the second life sees what the first left unsynced
		{"asb|s", "b"}, // and makes it durable with its own sync
		{"asb|cs", "c"},
	} {
		d, shim := shimmedDisk(t)
		for _, life := range strings.Split(one.lives, "|") {
			oneLife(t, d, shim, life)
			if err := d.survive(); err != nil {
				t.Fatal(err)
			}
		}
		if left := afterPowerLoss(t, d); left != one.left {
			t.Errorf("%s leaves %s rather than %s", one.lives, left, one.left)
		}
	}
}

func TestADiskFailsAsOftenAsItIsTold(t *testing.T) {
	d, shim := shimmedDisk(t)
	for _, one := range []struct {
		how      manners
		letters  string
		failures uint32
	}{
		{manners{}, "bsr", 0},
		{manners{writesFail: 1000}, "b", 1},
		{manners{syncsFail: 1000}, "bs", 1},
		{manners{readsFail: 1000}, "bsr", 1},
		{manners{syncDelayMs: 1}, "bssr", 2},
	} {
		before, err := d.misbehaved()
		if err == nil {
			err = d.misbehave(one.how)
		}
		if err != nil {
			t.Fatal(err)
		}
		out, err := program(d, shim, one.letters).CombinedOutput()
		if fails := one.failures > 0 && one.how.syncDelayMs == 0; fails != (err != nil) || fails && !strings.Contains(string(out), "Input/output error") {
			t.Errorf("%v, %s: %v, %s", one.how, one.letters, err, out)
		}
		if after, err := d.misbehaved(); err != nil || after-before != one.failures {
			t.Errorf("%v, %s: counted are %d, %v", one.how, one.letters, after-before, err)
		}
	}
}

func shimmedDisk(t *testing.T) (*disk, string) {
	folder := t.TempDir()
	shim, err := buildShim(folder)
	if err != nil {
		t.Skip(err)
	}
	d, err := newDisk(folder, false, true)
	if err == nil {
		err = os.MkdirAll(d.segments(), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &d, shim
}

func program(d *disk, shim, letters string) *exec.Cmd {
	command := exec.Command("python3", "-c", writer, filepath.Join(d.segments(), "segment-00000001"), letters)
	command.Env = append(os.Environ(), d.environment(shim)...)
	return command
}

func oneLife(t *testing.T, d *disk, shim, letters string) {
	if out, err := program(d, shim, letters).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// afterPowerLoss is the letter that the file is full of, once every sector that may be lost was lost in one of many attempts.
func afterPowerLoss(t *testing.T, d *disk) string {
	name := filepath.Join(d.segments(), "segment-00000001")
	journal, err := os.ReadFile(d.journal)
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(50) {
		if err := os.WriteFile(d.journal, journal, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := d.losePower(rand.New(rand.NewPCG(seed, 0))); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content[:1]) + strings.Trim(string(content), string(content[:1]))
}

func TestBitsFlipInEntriesOfFinishedSegments(t *testing.T) {
	d, err := newDisk(t.TempDir(), false, false)
	if err == nil {
		err = os.MkdirAll(d.segments(), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	segment := func(number int) string { return filepath.Join(d.segments(), fmt.Sprintf("segment-%08d", number)) }
	content := make([][]byte, 3)
	for number, messages := range [][]int{{0, 1}, {1}, {2}} {
		for _, message := range messages {
			content[number] = append(append(content[number], "something else"...), keptPayload("topic", message)...)
		}
		if err := os.WriteFile(segment(number), content[number], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	names, err := d.flipEntries(rand.New(rand.NewPCG(1, 0)), []byte("kept|"), 5)
	slices.Sort(names)
	if err != nil || !slices.Equal(names, []string{"topic 0", "topic 1"}) {
		t.Errorf("bits have flipped in %q, %v", names, err)
	}
	for number, bytes := range []int{2, 1, 0} {
		now, err := os.ReadFile(segment(number))
		if err != nil || len(now) != len(content[number]) {
			t.Fatalf("%d bytes, %v", len(now), err)
		}
		changed := 0
		for at := range now {
			if now[at] != content[number][at] {
				changed++
			}
		}
		if changed != bytes {
			t.Errorf("in segment %d, %d bytes have changed", number, changed)
		}
	}
}
