package main

import (
	"bufio"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"

	"geminga/tests/end-to-end/workload"
)

//go:embed guest.py
var pythonSource []byte

//go:embed Guest.java
var javaSource []byte

// guest is a client in another language; what it sees goes into the same history.
type guest struct {
	language   string
	began      time.Time // the beginning of time
	consumer   int64     // when the one that it consumes with was made
	topic      *workload.Topic
	history    *workload.Delivered
	problems   *workload.Violations
	process    *exec.Cmd
	input      io.WriteCloser
	subscribed chan struct{}
	flushed    chan struct{}
	ended      chan struct{}
}

// invite starts the guests that the configuration has what they need for, each on a topic of its own.
func (k *campaign) invite() error {
	add := func(language, file string, source []byte, on *workload.Topic, receipts bool, command ...string) error {
		program := filepath.Join(k.cluster.folder, file)
		if err := os.WriteFile(program, source, 0o644); err != nil {
			return err
		}
		kind := workload.Kind{Name: language, Is: pulsar.Failover, Consumers: 1, Ordered: true, Receipts: receipts}
		g := &guest{language: language, began: k.began, topic: on, problems: k.problems, subscribed: make(chan struct{}), flushed: make(chan struct{}),
			ended: make(chan struct{}), history: on.Also(kind, k.problems)}
		started, err := g.start(append(command, program), k.cluster.folder, k.cluster.url(), k.config.pause)
		if started {
			k.guests = append(k.guests, g)
		}
		return err
	}
	if k.config.python != "" {
		if err := add("python", "guest.py", pythonSource, k.topics[1], false, k.config.python); err != nil {
			return err
		}
	}
	if k.config.java != "" {
		if err := add("java", "Guest.java", javaSource, k.topics[5], true, "java", "-Xmx256m", "-cp", k.config.java); err != nil {
			return err
		}
	}
	return nil
}

func (g *guest) start(command []string, folder, url string, pause time.Duration) (started bool, err error) {
	log, err := os.OpenFile(filepath.Join(folder, "guest-"+g.language+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return false, err
	}
	defer log.Close()
	g.process = exec.Command(command[0], append(command[1:], url, g.topic.Name, g.language, g.language, fmt.Sprint(pause.Milliseconds()))...)
	g.process.Stderr = log
	g.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if g.input, err = g.process.StdinPipe(); err != nil {
		return false, err
	}
	output, err := g.process.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := g.process.Start(); err != nil {
		return false, err
	}
	go g.read(output)
	select {
	case <-g.subscribed:
		return true, nil
	case <-time.After(time.Minute):
		return true, fmt.Errorf("the %s client has not subscribed within a minute; its log ends:\n%s", g.language, tail(log.Name(), 2000))
	}
}

func (g *guest) read(from io.Reader) {
	defer close(g.ended)
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		if err := g.line(lines.Text()); err != nil {
			g.problems.Add("the %s client printed %q: %v", g.language, lines.Text(), err)
		}
	}
}

func (g *guest) now() int64 { return int64(time.Since(g.began)) }

func (g *guest) line(text string) error {
	word, rest, _ := strings.Cut(text, " ")
	var at workload.Position
	switch word {
	case "subscribing": // with a new consumer: the one before is closed
		g.consumer = g.now()
	case "subscribed":
		close(g.subscribed)
	case "flushed":
		close(g.flushed)
	case "published":
		m := workload.Identity{Producer: g.language}
		if _, err := fmt.Sscan(rest, &m.Number, &at.Ledger, &at.Entry, &at.Batch); err != nil {
			return err
		}
		at.Batch = max(at.Batch, 0)
		g.topic.Published.Receipt(m, at)
	case "received":
		var m workload.Identity
		var key string
		if _, err := fmt.Sscan(rest, &m.Producer, &m.Number, &key, &at.Ledger, &at.Entry, &at.Batch); err != nil {
			return err
		}
		at.Batch = max(at.Batch, 0)
		g.history.Received(g.consumer, m, key, at)
	case "acknowledged": // with a receipt, some time ago
		if _, err := fmt.Sscan(rest, &at.Ledger, &at.Entry, &at.Batch); err != nil {
			return err
		}
		at.Batch = max(at.Batch, 0)
		g.history.Acknowledged(g.now(), []workload.Position{at})
	default:
		return fmt.Errorf("unknown")
	}
	return nil
}

// flush ends the producing, and waits until all has its receipt.
func (g *guest) flush(limit time.Duration) error {
	fmt.Fprintln(g.input)
	select {
	case <-g.flushed:
		return nil
	case <-g.ended:
		return fmt.Errorf("the %s client ended by itself", g.language)
	case <-time.After(limit):
		return fmt.Errorf("the %s client has messages without receipt after %v", g.language, limit)
	}
}

func (g *guest) end() {
	fmt.Fprintln(g.input)
	select {
	case <-g.ended:
	case <-time.After(15 * time.Second):
		g.process.Process.Kill()
		<-g.ended
	}
	g.process.Wait()
}
