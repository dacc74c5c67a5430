package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	zones        = 3
	nodesPerZone = 2
	brokerCount  = 3
)

// cluster is PostgreSQL, storage nodes and brokers, each at a host of its own.
type cluster struct {
	folder   string
	network  *network
	postgres *process
	nodes    []*node
	brokers  []*broker
}

type node struct {
	*process
	disk    disk
	address string // for brokers
	http    string
}

type broker struct {
	*process
	address string // for clients
	id      string // as metadata name it: the address for HTTP
}

func newCluster(binary, folder string) (*cluster, error) {
	network, err := newNetwork()
	if err != nil {
		return nil, err
	}
	c := &cluster{folder: folder, network: network}
	url, err := c.addPostgres()
	if err != nil {
		return c, err
	}
	if err := command([]string{binary, "metadata", "init", "--metadata-url", url, "--cluster", "faults"}); err != nil {
		return c, err
	}
	shim, err := buildShim(folder)
	if err != nil {
		fmt.Println(err)
	}
	for n := range zones * nodesPerZone {
		if err := c.addNode(binary, url, shim, n); err != nil {
			return c, err
		}
	}
	for n := range brokerCount {
		if err := c.addBroker(binary, url, n); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c *cluster) newProcess(name string) (*process, error) {
	h, err := c.network.add(name)
	if err != nil {
		return nil, err
	}
	p := &process{name: name, host: h, folder: filepath.Join(c.folder, name), killed: syscall.SIGKILL}
	return p, os.MkdirAll(p.folder, 0o755)
}

// addPostgres starts a server of Debian's package, with everything synced, and returns the URL of a database.
func (c *cluster) addPostgres() (string, error) {
	programs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(programs) == 0 {
		return "", fmt.Errorf("PostgreSQL is not installed (Debian's package postgresql)")
	}
	bin := programs[len(programs)-1]
	p, err := c.newProcess("postgres")
	if err != nil {
		return "", err
	}
	data, port := filepath.Join(p.folder, "data"), freePort()
	if os.Geteuid() == 0 { // it refuses to run as root
		own, err := user.Lookup("postgres")
		if err != nil {
			return "", err
		}
		uid, _ := strconv.Atoi(own.Uid)
		gid, _ := strconv.Atoi(own.Gid)
		p.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(p.folder, uid, gid); err != nil {
			return "", err
		}
	}
	initialize := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-A", "trust", "-U", "geminga", "--no-sync")
	initialize.Dir = "/"
	initialize.SysProcAttr = &syscall.SysProcAttr{Credential: p.credential}
	if out, err := initialize.CombinedOutput(); err != nil {
		return "", fmt.Errorf("initdb: %w: %s", err, out)
	}
	rules := fmt.Sprintf("host all all 127.0.0.1/32 trust\nhost all all 10.99.0.0/24 trust\nlocal all all trust\n")
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(rules), 0o644); err != nil {
		return "", err
	}
	p.command = []string{filepath.Join(bin, "postgres"), "-D", data, "-p", fmt.Sprint(port), "-c", "listen_addresses=" + p.host.ip,
		"-c", "unix_socket_directories=" + p.folder, "-c", "max_connections=200",
		// In its folder, where a kill leaves nothing behind.
		"-c", "dynamic_shared_memory_type=mmap"}
	isReady := filepath.Join(bin, "pg_isready")
	p.ready = func() bool {
		return exec.Command(isReady, "-q", "-h", p.folder, "-p", fmt.Sprint(port), "-U", "geminga", "-d", "postgres").Run() == nil
	}
	p.killed = syscall.SIGQUIT // its immediate stop, which is a crash to it; after SIGKILL its children would be left
	c.postgres = p
	return fmt.Sprintf("postgres://geminga@%s:%d/postgres", p.host.ip, port), c.postgres.start()
}

func (c *cluster) addNode(binary, url, shim string, number int) error {
	p, err := c.newProcess(fmt.Sprintf("node-%d", number))
	if err != nil {
		return err
	}
	n := &node{process: p, address: fmt.Sprintf("%s:%d", p.host.ip, freePort()), http: fmt.Sprintf("%s:%d", p.host.ip, freePort())}
	if n.disk, err = newDisk(p.folder, c.network.isolated, shim != ""); err != nil {
		return err
	}
	if shim != "" {
		n.environment = n.disk.environment(shim)
	}
	n.command = []string{binary, "storage-node", "--data-dir", n.disk.data, "--addr", n.address,
		"--http-addr", n.http, "--metadata-url", url, "--zone", fmt.Sprintf("zone-%d", number%zones),
		"--garbage-interval", "2s", "--lost-node-after", lostAfter.String(), "--audit-interval", auditInterval.String(), "--scrub-interval", "30s",
		"--scrub-rate", "16MiB", "--ready-file", filepath.Join(p.folder, "ready.json")}
	n.ready = n.wroteReady
	c.nodes = append(c.nodes, n)
	return n.start()
}

func (c *cluster) addBroker(binary, url string, number int) error {
	p, err := c.newProcess(fmt.Sprintf("broker-%d", number))
	if err != nil {
		return err
	}
	b := &broker{process: p, address: fmt.Sprintf("%s:%d", p.host.ip, freePort()), id: fmt.Sprintf("%s:%d", p.host.ip, freePort())}
	b.command = []string{binary, "broker", "--metadata-url", url, "--cluster", "faults", "--pulsar-addr", b.address, "--http-addr", b.id,
		"--ready-file", filepath.Join(p.folder, "ready.json")}
	b.ready = b.wroteReady
	c.brokers = append(c.brokers, b)
	return b.start()
}

func (c *cluster) processes() []*process {
	all := []*process{c.postgres}
	for _, n := range c.nodes {
		all = append(all, n.process)
	}
	for _, b := range c.brokers {
		all = append(all, b.process)
	}
	return all
}

// url names all brokers.
func (c *cluster) url() string {
	var addresses []string
	for _, b := range c.brokers {
		addresses = append(addresses, b.address)
	}
	return "pulsar://" + strings.Join(addresses, ",")
}

// checkProcesses fails when one has ended by itself or panicked. Only while none is started or ended.
func (c *cluster) checkProcesses() error {
	for _, p := range c.processes() {
		if p.gone() {
			return fmt.Errorf("%s ended by itself; its log ends:\n%s", p.name, tail(p.logFile(), 3000))
		}
		if err := p.panicked(); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) close() {
	for _, p := range c.processes() {
		if p != nil {
			p.signal(syscall.SIGCONT)
			p.end(p.killed)
		}
	}
	for _, n := range c.nodes {
		n.disk.unmount()
	}
	for _, h := range c.network.hosts {
		if h.holder != nil {
			h.holder.Process.Kill()
		}
	}
}

// rest makes an admin call at a broker and follows where it is sent; path is below the broker's address.
func (b *broker) rest(method, path string, body, result any) error {
	return b.restWithin(20*time.Second, method, path, body, result)
}

// restWithin gives the call up after a limit, as somebody does who presses Ctrl-C.
func (b *broker) restWithin(limit time.Duration, method, path string, body, result any) error {
	content := []byte{}
	if body != nil {
		var err error
		if content, err = json.Marshal(body); err != nil {
			return err
		}
	}
	request, err := http.NewRequest(method, "http://"+b.id+"/"+strings.Replace(path, "://", "/", 1), bytes.NewReader(content))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	client := http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, text)
	}
	if result != nil {
		return json.Unmarshal(text, result)
	}
	return nil
}

// killAll kills all at once and starts all again.
func (c *cluster) killAll() error {
	for _, p := range c.processes() {
		if err := p.end(p.killed); err != nil {
			return err
		}
	}
	for _, n := range c.nodes {
		if err := n.disk.survive(); err != nil {
			return err
		}
	}
	for _, p := range c.processes() {
		if err := p.start(); err != nil {
			return err
		}
	}
	return nil
}
