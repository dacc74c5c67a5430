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

//go:embed second.py
var secondSource []byte

const secondName = "python"

// second is the client in another language; what it sees goes into the same history.
type second struct {
	topic      *workload.Topic
	history    *workload.Delivered
	problems   *workload.Violations
	process    *exec.Cmd
	input      io.WriteCloser
	subscribed chan struct{}
	flushed    chan struct{}
	ended      chan struct{}
}

func startSecond(python, folder, url string, t *workload.Topic, pause time.Duration, problems *workload.Violations) (*second, error) {
	program := filepath.Join(folder, "second.py")
	if err := os.WriteFile(program, secondSource, 0o644); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(folder, "second.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s := &second{topic: t, problems: problems, subscribed: make(chan struct{}), flushed: make(chan struct{}), ended: make(chan struct{}),
		history: t.Also(workload.Kind{Name: secondName, Is: pulsar.Failover, Consumers: 1, Ordered: true}, problems)}
	s.process = exec.Command(python, program, url, t.Name, secondName, secondName, fmt.Sprint(pause.Milliseconds()))
	s.process.Stderr = log
	s.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if s.input, err = s.process.StdinPipe(); err != nil {
		return nil, err
	}
	output, err := s.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.process.Start(); err != nil {
		return nil, err
	}
	go s.read(output)
	select {
	case <-s.subscribed:
		return s, nil
	case <-time.After(30 * time.Second):
		return s, fmt.Errorf("the Python client has not subscribed within 30 s; its log ends:\n%s", tail(log.Name(), 2000))
	}
}

func (s *second) read(from io.Reader) {
	defer close(s.ended)
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		if err := s.line(lines.Text()); err != nil {
			s.problems.Add("the Python client printed %q: %v", lines.Text(), err)
		}
	}
}

func (s *second) line(text string) error {
	word, rest, _ := strings.Cut(text, " ")
	var at workload.Position
	switch word {
	case "subscribed":
		close(s.subscribed)
	case "flushed":
		close(s.flushed)
	case "published":
		m := workload.Identity{Producer: secondName}
		if _, err := fmt.Sscan(rest, &m.Number, &at.Ledger, &at.Entry, &at.Batch); err != nil {
			return err
		}
		at.Batch = max(at.Batch, 0)
		s.topic.Published.Receipt(m, at)
	case "received":
		var m workload.Identity
		var key string
		if _, err := fmt.Sscan(rest, &m.Producer, &m.Number, &key, &at.Ledger, &at.Entry, &at.Batch); err != nil {
			return err
		}
		at.Batch = max(at.Batch, 0)
		// Its acknowledgements have no receipts, so it does not matter when its consumer was made.
		s.history.Received(0, m, key, at)
	default:
		return fmt.Errorf("unknown")
	}
	return nil
}

// flush ends the producing, and waits until all has its receipt.
func (s *second) flush(limit time.Duration) error {
	fmt.Fprintln(s.input)
	select {
	case <-s.flushed:
		return nil
	case <-s.ended:
		return fmt.Errorf("the Python client ended by itself")
	case <-time.After(limit):
		return fmt.Errorf("the Python client has messages without receipt after %v", limit)
	}
}

func (s *second) end() {
	fmt.Fprintln(s.input)
	select {
	case <-s.ended:
	case <-time.After(15 * time.Second):
		s.process.Process.Kill()
		<-s.ended
	}
	s.process.Wait()
}
