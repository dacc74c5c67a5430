package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// server is one geminga process after another on the same folder and ports; or, without a binary, somebody else's server,
// which is never touched.
type server struct {
	binary, folder string
	url, admin     string
	process        *exec.Cmd
	exited         chan struct{}
	slowestStart   time.Duration
}

const startLimit = 30 * time.Second

func newServer(c config) (*server, error) {
	if c.url != "" {
		return &server{url: c.url, admin: c.admin}, nil
	}
	if c.binary == "" {
		return nil, fmt.Errorf("neither --binary nor --url is given")
	}
	if err := os.MkdirAll(c.work, 0o755); err != nil {
		return nil, err
	}
	s := &server{binary: c.binary, folder: c.work}
	s.url = fmt.Sprintf("pulsar://127.0.0.1:%d", freePort())
	s.admin = fmt.Sprintf("http://127.0.0.1:%d", freePort())
	return s, s.start()
}

// freePort finds a port that nobody listens on, below those that the kernel gives to outgoing connections: it stays free
// while the server is down.
func freePort() int {
	for {
		port := 20_000 + rand.IntN(12_000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
}

func (s *server) logFile() string { return filepath.Join(s.folder, "server.log") }

// start returns once the ready file is written.
func (s *server) start() error {
	if s.binary == "" {
		return nil
	}
	ready := filepath.Join(s.folder, "ready.json")
	os.Remove(ready)
	log := must(os.OpenFile(s.logFile(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644))
	defer log.Close()
	s.process = exec.Command(s.binary, "standalone", "--data-dir", filepath.Join(s.folder, "data"), "--ready-file", ready,
		"--pulsar-addr", strings.TrimPrefix(s.url, "pulsar://"), "--http-addr", strings.TrimPrefix(s.admin, "http://"))
	s.process.Stdout, s.process.Stderr = log, log
	begin := time.Now()
	if err := s.process.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	s.exited = exited
	go func(process *exec.Cmd) {
		process.Wait()
		close(exited)
	}(s.process)
	for {
		if content, err := os.ReadFile(ready); err == nil && json.Valid(content) {
			break
		}
		select {
		case <-exited:
			return fmt.Errorf("the server ended while it started; its log ends:\n%s", tail(s.logFile(), 3000))
		case <-time.After(2 * time.Millisecond):
		}
		if time.Since(begin) > startLimit {
			return fmt.Errorf("the server was not ready after %v; its log ends:\n%s", startLimit, tail(s.logFile(), 3000))
		}
	}
	s.slowestStart = max(s.slowestStart, time.Since(begin))
	return nil
}

func (s *server) alive() error {
	if s.binary == "" {
		return nil
	}
	select {
	case <-s.exited:
		return fmt.Errorf("the server ended by itself; its log ends:\n%s", tail(s.logFile(), 3000))
	default:
		return nil
	}
}

// kill is SIGKILL; it returns when the process is gone.
func (s *server) kill() {
	if s.process != nil {
		s.process.Process.Kill()
		<-s.exited
	}
}

// terminate is SIGTERM, after which the process has to end by itself.
func (s *server) terminate() error {
	if s.process == nil {
		return nil
	}
	s.process.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(20 * time.Second):
		s.kill()
		return fmt.Errorf("the server did not end within 20 s of SIGTERM; its log ends:\n%s", tail(s.logFile(), 3000))
	}
	if code := s.process.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("exit code %d after SIGTERM; the log ends:\n%s", code, tail(s.logFile(), 3000))
	}
	return nil
}

// rest makes an admin call; path is below /admin/v2/.
func (s *server) rest(method, path string, body, result any) error {
	content := []byte{}
	if body != nil {
		content = must(json.Marshal(body))
	}
	request := must(http.NewRequest(method, s.admin+"/admin/v2/"+strings.Replace(path, "://", "/", 1), bytes.NewReader(content)))
	request.Header.Set("Content-Type", "application/json")
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, text)
	}
	if result != nil {
		return json.Unmarshal(text, result)
	}
	return nil
}
