package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func (d layout) readPid(part string) (int, error) {
	data, err := os.ReadFile(d.pid(part))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// alive gives the part's process id, or 0. The number in the pid file counts only if that process was started as this part on this
// folder: the number may belong to somebody else by now. (A process that has ended but was not waited for has no command line.)
func (d layout) alive(part string) (int, error) {
	pid, err := d.readPid(part)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return 0, nil
	}
	args := bytes.Split(bytes.TrimSuffix(cmdline, []byte{0}), []byte{0})
	if len(args) != 3 || string(args[1]) != part || string(args[2]) != string(d) {
		return 0, nil
	}
	return pid, nil
}

// process is a part that this `up` has started.
type process struct {
	part string
	pid  int
	done chan struct{} // closed when it has ended
	how  string        // it ended, once done
}

// start runs a part detached from this process and its terminal, output appended to its log.
func (d layout) start(part string) (*process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(d.log(part), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	fmt.Fprintf(log, "--- %s: started\n", time.Now().Format(time.RFC3339))
	cmd := exec.Command(exe, part, string(d))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = string(d)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{part: part, pid: cmd.Process.Pid, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		p.how = cmd.ProcessState.String()
		close(p.done)
	}()
	return p, nil
}

// stop ends the part if it runs: asks, then forces; returns when it is gone.
func (d layout) stop(part string, patience time.Duration) error {
	pid, err := d.alive(part)
	if err != nil {
		return err
	}
	signal := unix.SIGTERM
	for began := time.Now(); pid != 0; {
		if time.Since(began) > patience {
			signal = unix.SIGKILL
		}
		if time.Since(began) > patience+10*time.Second {
			return fmt.Errorf("%s, process %d, does not end", part, pid)
		}
		if signal != 0 {
			if err := unix.Kill(pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("end %s, process %d: %w", part, pid, err)
			}
			signal = 0
		}
		time.Sleep(20 * time.Millisecond)
		if pid, err = d.alive(part); err != nil {
			return err
		}
	}
	if err := os.Remove(d.pid(part)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// keepFilesFromParts: what else the caller has open (a pipe, a lock) must not stay open in the parts for ever.
func keepFilesFromParts() {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
