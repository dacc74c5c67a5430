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
	add := func(language, file string, source []byte, on *workload.Topic, command ...string) error {
		program := filepath.Join(k.cluster.folder, file)
		if err := os.WriteFile(program, source, 0o644); err != nil {
			return err
		}
		g, err := startGuest(language, append(command, program), k.cluster.folder, k.cluster.url(), on, k.config.pause, k.problems)
		if g != nil {
			k.guests = append(k.guests, g)
		}
		return err
	}
	if k.config.python != "" {
		if err := add("python", "guest.py", pythonSource, k.topics[1], k.config.python); err != nil {
			return err
		}
	}
	if k.config.java != "" {
		if err := add("java", "Guest.java", javaSource, k.topics[4], "java", "-Xmx256m", "-cp", k.config.java); err != nil {
			return err
		}
	}
	return nil
}

func startGuest(language string, command []string, folder, url string, t *workload.Topic, pause time.Duration, problems *workload.Violations) (*guest, error) {
	log, err := os.OpenFile(filepath.Join(folder, "guest-"+language+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	g := &guest{language: language, topic: t, problems: problems, subscribed: make(chan struct{}), flushed: make(chan struct{}), ended: make(chan struct{}),
		history: t.Also(workload.Kind{Name: language, Is: pulsar.Failover, Consumers: 1, Ordered: true}, problems)}
	g.process = exec.Command(command[0], append(command[1:], url, t.Name, language, language, fmt.Sprint(pause.Milliseconds()))...)
	g.process.Stderr = log
	g.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if g.input, err = g.process.StdinPipe(); err != nil {
		return nil, err
	}
	output, err := g.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := g.process.Start(); err != nil {
		return nil, err
	}
	go g.read(output)
	select {
	case <-g.subscribed:
		return g, nil
	case <-time.After(time.Minute):
		return g, fmt.Errorf("the %s client has not subscribed within a minute; its log ends:\n%s", language, tail(log.Name(), 2000))
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

func (g *guest) line(text string) error {
	word, rest, _ := strings.Cut(text, " ")
	var at workload.Position
	switch word {
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
		// Its acknowledgements have no receipts, so it does not matter when its consumer was made.
		g.history.Received(0, m, key, at)
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
