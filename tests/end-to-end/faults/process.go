package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const readyLimit = 60 * time.Second

// process is a role of the cluster: it keeps its folder, host and ports over restarts.
type process struct {
	name        string
	host        *host
	folder      string
	command     []string
	environment []string
	credential  *syscall.Credential
	ready       func() bool
	killed      syscall.Signal // what ends it at once

	mutex   sync.Mutex // held by whoever starts or ends it
	running *exec.Cmd
	exited  chan struct{}
}

func (p *process) logFile() string { return filepath.Join(p.folder, "log") }

// launch starts it and does not wait.
func (p *process) launch() error {
	log, err := os.OpenFile(p.logFile(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintf(log, "--- started at %s\n", time.Now().UTC().Format(timeForm))
	line := p.host.inside(p.command...)
	if p.credential != nil && p.host.holder != nil { // only root may enter a namespace: the rights are dropped behind it
		line = p.host.inside(append([]string{"setpriv", fmt.Sprintf("--reuid=%d", p.credential.Uid), fmt.Sprintf("--regid=%d", p.credential.Gid), "--clear-groups"}, p.command...)...)
	}
	one := exec.Command(line[0], line[1:]...)
	one.Stdout, one.Stderr, one.Dir = log, log, p.folder
	one.Env = append(os.Environ(), p.environment...)
	one.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.credential != nil && p.host.holder == nil {
		one.SysProcAttr.Credential = p.credential
	}
	if err := one.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	p.running, p.exited = one, exited
	go func() {
		one.Wait()
		close(exited)
	}()
	return nil
}

// start waits until it is ready. What ends while it starts, as it may without metadata or without a network, is started again.
func (p *process) start() error {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	begin := time.Now()
	for launched := false; ; {
		if !launched || p.gone() {
			os.Remove(filepath.Join(p.folder, "ready.json"))
			if launched {
				time.Sleep(200 * time.Millisecond)
			}
			if err := p.launch(); err != nil {
				return err
			}
			launched = true
		}
		if p.ready() {
			return nil
		}
		if time.Since(begin) > readyLimit {
			return fmt.Errorf("%s was not ready after %v; its log ends:\n%s", p.name, readyLimit, tail(p.logFile(), 3000))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (p *process) gone() bool {
	if p.running == nil {
		return true
	}
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// end sends a signal that ends it, and waits until it is gone. To end by itself before is a violation, which is returned.
func (p *process) end(how syscall.Signal) error {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.running == nil {
		return nil
	}
	if p.gone() {
		return fmt.Errorf("%s ended by itself (%v); its log ends:\n%s", p.name, p.running.ProcessState, tail(p.logFile(), 3000))
	}
	p.running.Process.Signal(how)
	select {
	case <-p.exited:
	case <-time.After(readyLimit):
		p.running.Process.Kill()
		<-p.exited
		return fmt.Errorf("%s did not end within %v of %v; its log ends:\n%s", p.name, readyLimit, how, tail(p.logFile(), 3000))
	}
	p.running = nil
	return nil
}

func (p *process) signal(what syscall.Signal) {
	if p.running != nil && !p.gone() {
		p.running.Process.Signal(what)
	}
}

// panicked says what a process wrote that must not be.
func (p *process) panicked() error {
	content, err := os.ReadFile(p.logFile())
	if err != nil {
		return err
	}
	if at := bytes.Index(content, []byte("panicked at")); at >= 0 {
		return fmt.Errorf("%s panicked: %s", p.name, content[at:min(len(content), at+1500)])
	}
	return nil
}

func (p *process) wroteReady() bool {
	content, err := os.ReadFile(filepath.Join(p.folder, "ready.json"))
	return err == nil && json.Valid(content)
}

// freePort finds a port that nobody listens on, below those that the kernel gives to outgoing connections: it stays free
// while the process is down.
func freePort() int {
	for {
		port := 20_000 + rand.IntN(12_000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
}

func tail(path string, size int64) string {
	content, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, int64(len(content))-size):])
}
