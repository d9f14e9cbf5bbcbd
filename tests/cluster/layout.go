package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// layout is a cluster's folder; every file in it has its name here.
type layout string

func (d layout) file(name string) string { return filepath.Join(string(d), name) }

func (d layout) kubeconfig() string { return d.file("kubeconfig") }
func (d layout) audit() string      { return d.file("audit.log") }
func (d layout) ports() string      { return d.file("ports") }
func (d layout) ready() string      { return d.file("ready") }
func (d layout) pki(name string) string {
	return filepath.Join(string(d), "pki", name)
}
func (d layout) pid(part string) string { return d.file(part + ".pid") }
func (d layout) log(part string) string { return d.file(part + ".log") }

// Sockets of etcd, relative to the folder in which every part runs: a socket's path may have 107 bytes only. etcd wants its addresses to
// look like host:port, sockets included.
const (
	etcdSocket     = "etcd:2379"
	etcdPeerSocket = "etcd:2380"
)

// remove deletes what a cluster made in its folder, and the folder itself if nothing else is in it.
func (d layout) remove() error {
	ours := []string{"etcd", "pki", "kubeconfig", "audit-policy.yaml", etcdSocket, etcdPeerSocket, "ready", "ports"}
	for _, part := range partOrder {
		ours = append(ours, part+".pid", part+".log")
	}
	logs, err := filepath.Glob(d.file("audit*.log")) // rotated ones have a time in their names
	if err != nil {
		return err
	}
	for _, name := range ours {
		if err := os.RemoveAll(d.file(name)); err != nil {
			return err
		}
	}
	for _, path := range logs {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if err := os.Remove(d.file("lock")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(string(d)); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// make gives the folder, resolved once more, as it may not have existed when its name was read.
func (d layout) make() (layout, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return "", err
	}
	resolved, err := filepath.EvalSymlinks(string(d))
	return layout(resolved), err
}

// lock serialises up and down on one folder.
func (d layout) lock() (unlock func(), err error) {
	for {
		if _, err := d.make(); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(d.file("lock"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		// A `down` that had it before us has removed it: then it is no lock any more.
		held, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if named, err := os.Stat(f.Name()); err == nil && os.SameFile(held, named) {
			return func() { f.Close() }, nil
		}
		f.Close()
	}
}

// ports are chosen once for a folder, so that a part that is started again answers where it did before.
type ports struct {
	APIServer         int `json:"kube-apiserver"`
	ControllerManager int `json:"kube-controller-manager"`
}

func (p ports) server() string { return "https://" + hostPort(p.APIServer) }

func hostPort(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func (d layout) readPorts() (p ports, err error) {
	data, err := os.ReadFile(d.ports())
	if err != nil {
		return p, err
	}
	return p, json.Unmarshal(data, &p)
}

func choosePorts() (p ports, err error) {
	if p.APIServer, err = freePort(); err != nil {
		return p, err
	}
	for {
		if p.ControllerManager, err = freePort(); err != nil || p.ControllerManager != p.APIServer {
			return p, err
		}
	}
}

// freePort looks below the range that the kernel gives to outgoing connections (from 32768): a part may be started again later, and
// its port must not have gone to somebody's client connection meanwhile.
func freePort() (int, error) {
	for range 200 {
		port := 18000 + rand.IntN(14000)
		l, err := net.Listen("tcp4", hostPort(port))
		if err != nil {
			continue
		}
		l.Close()
		return port, nil
	}
	return 0, errors.New("no free port on 127.0.0.1 between 18000 and 32000")
}

// writeFile replaces a file in one step, readable by its owner only.
func writeFile(path string, data []byte) error {
	tmp := fmt.Sprintf("%s.%d.tmp", path, os.Getpid())
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func (d layout) writePorts(p ports) error {
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(d.ports(), append(data, '\n'))
}
