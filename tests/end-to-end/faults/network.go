package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

// insideVariable marks the process that runs in namespaces of its own.
const insideVariable = "GEMINGA_FAULTS_INSIDE"

// enterNamespaces runs this program again with a network, mounts and processes of its own, and returns its exit code: nothing
// that it does is seen outside, and the kernel ends and unmounts everything with it. Only root may; `entered` says whether
// it was possible, or has happened already.
func enterNamespaces() (code int, entered bool) {
	if os.Getenv(insideVariable) != "" || os.Geteuid() != 0 {
		return 0, false
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), insideVariable+"=1")
	again.Stdout, again.Stderr = os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if again.Start() != nil {
		return 0, false
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for one := range signals {
			again.Process.Signal(one)
		}
	}()
	again.Wait()
	return max(again.ProcessState.ExitCode(), 0), true
}

// network is a bridge with a namespace for each process; the tool and its clients are at the bridge itself. Without namespaces all
// are on loopback, and nothing can be cut off.
type network struct {
	isolated bool
	hosts    []*host
}

// host is where a process lives.
type host struct {
	name, ip string
	holder   *exec.Cmd // keeps the namespace
}

const nowhere = "02:00:00:00:00:99" // nobody's hardware address

func newNetwork() (*network, error) {
	n := &network{isolated: os.Getenv(insideVariable) != ""}
	if !n.isolated {
		return n, nil
	}
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("mounts of its own: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return nil, fmt.Errorf("mount /proc: %w", err)
	}
	return n, commands("ip link set lo up", "ip link add bridge type bridge", "ip addr add 10.99.0.1/24 dev bridge", "ip link set bridge up")
}

func (n *network) add(name string) (*host, error) {
	h := &host{name: name, ip: "127.0.0.1"}
	n.hosts = append(n.hosts, h)
	if !n.isolated {
		return h, nil
	}
	number := len(n.hosts) + 1
	h.ip = fmt.Sprintf("10.99.0.%d", number)
	h.holder = exec.Command("sleep", "infinity")
	h.holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := h.holder.Start(); err != nil {
		return nil, err
	}
	pid := h.holder.Process.Pid
	if err := commands(fmt.Sprintf("ip link add veth%d type veth peer name eth0 netns %d", number, pid), fmt.Sprintf("ip link set veth%d master bridge up", number)); err != nil {
		return nil, err
	}
	for _, line := range []string{"ip link set lo up", "ip addr add " + h.ip + "/24 dev eth0", "ip link set eth0 up"} {
		if err := h.do(line); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// inside turns a command into one that runs in the host's namespace, under the pid that it has from the start.
func (h *host) inside(arguments ...string) []string {
	if h == nil || h.holder == nil {
		return arguments
	}
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", h.holder.Process.Pid)}, arguments...)
}

func (h *host) do(line string) error { return command(h.inside(strings.Fields(line)...)) }

// outside is the tool with its clients, as a host.
var outside = &host{name: "clients", ip: "10.99.0.1"}

func (h *host) device() string {
	if h == outside {
		return "bridge"
	}
	return "eth0"
}

// block drops, in silence, whatever `from` sends to `to`.
func block(from, to *host) error {
	return from.do(fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", to.ip, nowhere, from.device()))
}

func unblock(from, to *host) error {
	return from.do(fmt.Sprintf("ip neigh del %s dev %s", to.ip, from.device()))
}

// cut breaks the connections that are open between two hosts, and says whether there were any; new ones may be made.
func cut(from, to *host) (bool, error) {
	line := from.inside("ss", "-H", "-K", "-t", "dst", to.ip)
	out, err := exec.Command(line[0], line[1:]...).CombinedOutput()
	if err != nil {
		return false, fmt.Errorf("%s: %w: %s", strings.Join(line, " "), err, out)
	}
	return len(out) > 0, nil
}

func commands(lines ...string) error {
	for _, line := range lines {
		if err := command(strings.Fields(line)); err != nil {
			return err
		}
	}
	return nil
}

func command(arguments []string) error {
	if out, err := exec.Command(arguments[0], arguments[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(arguments, " "), err, out)
	}
	return nil
}
