package main

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// writer does what it is told, each a letter: `s` syncs its file, another one fills both sectors of it with itself.
const writer = `
import os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for letter in sys.argv[2]:
    if letter == "s":
        os.fdatasync(file)
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
	if err := d.misbehave(0, 1000, 0); err != nil {
		t.Fatal(err)
	}
	if out, err := program(d, shim, "bs").CombinedOutput(); err == nil || !strings.Contains(string(out), "Input/output error") {
		t.Errorf("a sync did not fail: %v, %s", err, out)
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
