package main

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

//go:embed shim/powerloss.c
var shimSource []byte

const (
	diskBytes    = 512 << 20
	sectorBytes  = 512
	recordBytes  = 32 // the head of a record of the journal
	controlBytes = 20
	recordWrite  = 1
	recordSync   = 2
)

// disk is what a node's data are on: a small file system of its own where that can be mounted, a folder otherwise; and what the
// shim knows of it.
type disk struct {
	data             string
	own              string // where the file system is mounted, "" without
	journal, control string // "" without shim
}

func newDisk(folder string, mountable, shimmed bool) (disk, error) {
	d := disk{data: filepath.Join(folder, "disk", "data")}
	root := filepath.Join(folder, "disk")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return d, err
	}
	if shimmed {
		d.journal, d.control = filepath.Join(folder, "journal"), filepath.Join(folder, "control")
		if err := os.WriteFile(d.control, make([]byte, controlBytes), 0o644); err != nil {
			return d, err
		}
	}
	if !mountable {
		return d, nil
	}
	image := filepath.Join(folder, "image")
	if err := os.WriteFile(image, nil, 0o644); err != nil {
		return d, err
	}
	if err := os.Truncate(image, diskBytes); err != nil {
		return d, err
	}
	if err := command([]string{"mkfs.ext4", "-q", "-m", "0", image}); err != nil {
		return d, err
	}
	if err := command([]string{"mount", "-o", "loop", image, root}); err != nil {
		fmt.Println(err)
		return d, nil
	}
	d.own = root
	return d, nil
}

func (d *disk) unmount() {
	if d.own != "" {
		syscall.Unmount(d.own, syscall.MNT_DETACH)
	}
}

func buildShim(folder string) (string, error) {
	source, library := filepath.Join(folder, "powerloss.c"), filepath.Join(folder, "powerloss.so")
	if err := os.WriteFile(source, shimSource, 0o644); err != nil {
		return "", err
	}
	out, err := exec.Command("cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl", "-lpthread").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("cc: %w: %s", err, out)
	}
	return library, nil
}

func (d *disk) environment(shim string) []string {
	return []string{"LD_PRELOAD=" + shim, "FAULTS_JOURNAL=" + d.journal, "FAULTS_CONTROL=" + d.control}
}

// manners are how a disk misbehaves: of a thousand writes, syncs and reads, how many fail, and how much longer a sync takes. The zero
// value is a good disk.
type manners struct{ writesFail, syncsFail, syncDelayMs, readsFail uint32 }

func (m manners) String() string {
	return fmt.Sprintf("of 1000 writes %d, of 1000 syncs %d and of 1000 reads %d fail, a sync takes %d ms more", m.writesFail, m.syncsFail, m.readsFail, m.syncDelayMs)
}

func (d *disk) misbehave(how manners) error {
	var content []byte
	for _, number := range []uint32{how.writesFail, how.syncsFail, how.syncDelayMs, how.readsFail} {
		content = binary.LittleEndian.AppendUint32(content, number)
	}
	file, err := os.OpenFile(d.control, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteAt(content, 0)
	return err
}

// misbehaved counts, since the beginning, what has failed or taken longer.
func (d *disk) misbehaved() (uint32, error) {
	content, err := os.ReadFile(d.control)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(content[controlBytes-4:]), nil
}

func (d *disk) filler() string { return filepath.Join(d.own, "filler") }

// fill leaves no space, and says whether there was any.
func (d *disk) fill() (bool, error) {
	file, err := os.Create(d.filler())
	if err != nil {
		return false, err
	}
	defer file.Close()
	var size int64
	for step := int64(64 << 20); step >= 4096; { // smaller and smaller pieces, until none fits
		if err := syscall.Fallocate(int(file.Fd()), 0, size, step); errors.Is(err, syscall.ENOSPC) {
			step /= 2
		} else if err != nil {
			return false, err
		} else {
			size += step
		}
	}
	return size > 0, nil
}

func (d *disk) empty() error { return os.Remove(d.filler()) }

// flip inverts single bits of what a stopped node has written, in its segments except the newest: the last commit is not told
// from a torn write when there is nothing behind it (docs/reliability.md). Returns what it did.
func (d *disk) flip(random *rand.Rand, bits int) ([]string, error) {
	segments, err := d.finishedSegments()
	if err != nil {
		return nil, err
	}
	var done []string
	for range bits * 200 { // most of a preallocated segment are zeros
		if len(done) == bits || len(segments) == 0 {
			break
		}
		name := segments[random.IntN(len(segments))]
		at, err := flipIn(name, random)
		if err != nil {
			return done, err
		}
		if at >= 0 {
			done = append(done, fmt.Sprintf("%s at %d", filepath.Base(name), at))
		}
	}
	return done, nil
}

// finishedSegments are all but the newest one.
func (d *disk) finishedSegments() ([]string, error) {
	segments, err := filepath.Glob(filepath.Join(d.segments(), "segment-*"))
	sort.Strings(segments)
	return segments[:max(0, len(segments)-1)], err
}

// flipIn returns where, or -1 if there were only zeros.
func flipIn(name string, random *rand.Rand) (int64, error) {
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return -1, err
	}
	defer file.Close()
	about, err := file.Stat()
	if err != nil || about.Size() == 0 {
		return -1, err
	}
	// Records are written from the front on: the front is more likely.
	at := int64(float64(about.Size()) * random.Float64() * random.Float64())
	sector := make([]byte, sectorBytes)
	if _, err := file.ReadAt(sector, at/sectorBytes*sectorBytes); err != nil && err != io.EOF {
		return -1, err
	}
	if strings.Trim(string(sector), "\x00") == "" {
		return -1, nil
	}
	return at, invert(file, at, 1<<random.IntN(8))
}

// invert changes the bits of a byte that the mask has.
func invert(file *os.File, at int64, mask byte) error {
	one := make([]byte, 1)
	if _, err := file.ReadAt(one, at); err != nil {
		return err
	}
	one[0] ^= mask
	if _, err := file.WriteAt(one, at); err != nil {
		return err
	}
	return file.Sync()
}

// write is one that the shim has noted.
type write struct {
	inode, offset, number uint64
	before                []byte
}

// losePower takes back what a killed node had written and not synced: all of it, or each sector as chance has it. Returns how
// many sectors that were.
func (d *disk) losePower(random *rand.Rand) (int, error) {
	pending, err := d.unsynced()
	if err != nil {
		return 0, err
	}
	names, err := d.files()
	if err != nil {
		return 0, err
	}
	type sector struct{ inode, at uint64 }
	lost := map[sector]bool{}
	all := random.IntN(3) == 0
	count := 0
	for i := len(pending) - 1; i >= 0; i-- { // backwards: what stood there first is what stays
		w := pending[i]
		name, there := names[w.inode]
		if !there { // deleted since
			continue
		}
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return count, err
		}
		for from := 0; from < len(w.before); from += sectorBytes {
			where := sector{w.inode, (w.offset + uint64(from)) / sectorBytes}
			if _, drawn := lost[where]; !drawn {
				lost[where] = all || random.IntN(2) == 0
				if lost[where] {
					count++
				}
			}
			if lost[where] {
				if _, err := file.WriteAt(w.before[from:min(len(w.before), from+sectorBytes)], int64(w.offset)+int64(from)); err != nil {
					file.Close()
					return count, err
				}
			}
		}
		file.Sync()
		file.Close()
	}
	return count, nil
}

// unsynced reads the journal and removes it.
func (d *disk) unsynced() ([]write, error) {
	content, err := os.ReadFile(d.journal)
	if err != nil {
		return nil, err
	}
	var writes []write
	durable := map[uint64]uint64{} // by inode: how many of its writes
	for len(content) >= recordBytes {
		kind, length := binary.LittleEndian.Uint32(content), int(binary.LittleEndian.Uint32(content[4:]))
		inode, offset, number := binary.LittleEndian.Uint64(content[8:]), binary.LittleEndian.Uint64(content[16:]), binary.LittleEndian.Uint64(content[24:])
		content = content[recordBytes:]
		if kind == recordSync {
			durable[inode] = max(durable[inode], offset)
			continue
		}
		if len(content) < length {
			// The last one: its node was killed while it noted what stood there, and before it wrote.
			break
		}
		writes = append(writes, write{inode, offset, number, content[:length]})
		content = content[length:]
	}
	var pending []write
	for _, w := range writes {
		if count, any := durable[w.inode]; !any || w.number > count {
			pending = append(pending, w)
		}
	}
	return pending, os.Remove(d.journal)
}

// survive is what happens to a disk when its node is killed: the kernel still has what was not synced, and so the next life of the
// node reads it, but may lose it if the power goes before it has synced that file. Numbers begin anew in that life; any sync of the file
// covers what is carried over.
func (d *disk) survive() error {
	if d.journal == "" {
		return nil
	}
	pending, err := d.unsynced()
	if err != nil {
		return err
	}
	var content []byte
	for _, w := range pending {
		content = binary.LittleEndian.AppendUint32(content, recordWrite)
		content = binary.LittleEndian.AppendUint32(content, uint32(len(w.before)))
		content = binary.LittleEndian.AppendUint64(content, w.inode)
		content = binary.LittleEndian.AppendUint64(content, w.offset)
		content = binary.LittleEndian.AppendUint64(content, 0)
		content = append(content, w.before...)
	}
	return os.WriteFile(d.journal, content, 0o644)
}

// segments is the folder of the log.
func (d *disk) segments() string { return filepath.Join(d.data, "log") }

// files are the node's, by inode.
func (d *disk) files() (map[uint64]string, error) {
	names := map[uint64]string{}
	entries, err := os.ReadDir(d.segments())
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		about, err := entry.Info()
		if err != nil {
			return nil, err
		}
		if stat, is := about.Sys().(*syscall.Stat_t); is && about.Mode().IsRegular() {
			names[stat.Ino] = filepath.Join(d.segments(), entry.Name())
		}
	}
	return names, nil
}
