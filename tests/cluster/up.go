package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "cluster: "+format+"\n", args...) }

// up starts the parts that do not run, waits until all answer and the CRDs are served, and prints the kubeconfig's path.
func up(d layout, crdFolder string, timeout time.Duration) error {
	keepFilesFromParts()
	crdFolder, err := filepath.Abs(crdFolder)
	if err != nil {
		return err
	}
	if d, err = d.make(); err != nil {
		return err
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.Chdir(string(d)); err != nil { // etcd's socket is dialled from here
		return err
	}

	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not ready after %s", timeout))
	defer cancel()
	s := starter{layout: d}
	if err := s.bringUp(ctx, crdFolder); err != nil {
		return errors.Join(err, s.takeBack())
	}
	fmt.Println(d.kubeconfig())
	return nil
}

// starter remembers what this call has started, to watch it and to take it back.
type starter struct {
	layout
	started []*process
}

func (s *starter) bringUp(ctx context.Context, crdFolder string) error {
	began := time.Now()
	p, err := s.prepare()
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", s.kubeconfig())
	if err != nil {
		return err
	}
	config.QPS = -1 // no limit
	config.WarningHandler = rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}

	if err := s.ensure(etcdPart); err != nil {
		return err
	}
	if err := s.wait(ctx, etcdPart, func(context.Context) error { return dial("unix", etcdSocket) }); err != nil {
		return err
	}
	if err := s.ensure(apiServerPart); err != nil {
		return err
	}
	crds, hash, err := readCRDs(crdFolder) // while the API server starts
	if err != nil {
		return err
	}
	if err := s.wait(ctx, apiServerPart, func(ctx context.Context) error {
		return apiServerReady(ctx, client.Discovery().RESTClient())
	}); err != nil {
		return err
	}
	if len(s.started) > 0 {
		say("kube-apiserver ready after %s", since(began))
	}
	if err := s.ensure(controllerPart); err != nil {
		return err
	}
	installed, err := os.ReadFile(s.ready())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if again := string(installed) != hash; again || len(s.started) > 0 {
		install, err := installer(config, crds, again)
		if err != nil {
			return err
		}
		if err := s.wait(ctx, apiServerPart, install); err != nil {
			return err
		}
		say("%d CRDs served after %s", len(crds), since(began))
	}
	if err := s.wait(ctx, controllerPart, func(ctx context.Context) error {
		if err := dial("tcp4", hostPort(p.ControllerManager)); err != nil {
			return err
		}
		// Pods cannot be created before it is there.
		_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	}); err != nil {
		return err
	}
	if len(s.started) > 0 {
		say("ready after %s", since(began))
	}
	return writeFile(s.ready(), []byte(hash))
}

// ensure starts the part if it does not run.
func (s *starter) ensure(part string) error {
	pid, err := s.alive(part)
	if err != nil || pid != 0 {
		return err
	}
	p, err := s.start(part)
	if err != nil {
		return fmt.Errorf("start %s: %w", part, err)
	}
	s.started = append(s.started, p)
	return nil
}

// wait asks until check passes, the part has ended, or time is up. What the last check said goes into the error.
func (s *starter) wait(ctx context.Context, part string, check func(context.Context) error) error {
	ended := make(chan struct{}) // never, if it ran before
	var how *process
	for _, p := range s.started {
		if p.part == part {
			ended, how = p.done, p
		}
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		var fatal fatalError
		if errors.As(err, &fatal) {
			return fatal.error
		}
		select {
		case <-ended:
			return fmt.Errorf("%s has ended (%s); the end of %s:\n%s", part, how.how, s.log(part), tail(s.log(part), 30))
		case <-ctx.Done():
			return fmt.Errorf("%w: %s: %w; the end of %s:\n%s", context.Cause(ctx), part, err, s.log(part), tail(s.log(part), 30))
		case <-tick.C:
		}
	}
}

func apiServerReady(ctx context.Context, client rest.Interface) error {
	body, err := client.Get().AbsPath("/readyz").Do(ctx).Raw()
	if err == nil || len(body) == 0 {
		return err
	}
	var failed []string // of its many checks
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "[-]") {
			failed = append(failed, strings.TrimSpace(line))
		}
	}
	return fmt.Errorf("not ready: %s", strings.Join(failed, ", "))
}

// fatalError is one that asking again does not mend.
type fatalError struct{ error }

// takeBack ends what was started for nothing; the files stay, to be looked at.
func (s *starter) takeBack() error {
	var errs []error
	for i := len(s.started) - 1; i >= 0; i-- {
		p := s.started[i]
		_ = unix.Kill(-p.pid, unix.SIGKILL) // its own session, so its own group
		<-p.done
		if err := os.Remove(s.pid(p.part)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func dial(network, address string) error {
	c, err := net.DialTimeout(network, address, time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}

func since(t time.Time) time.Duration { return time.Since(t).Round(10 * time.Millisecond) }

// down ends what runs on the folder, the part that needs the others first.
func down(d layout, keep bool) error {
	if _, err := os.Stat(d.ports()); errors.Is(err, fs.ErrNotExist) {
		say("no cluster in %s", d)
		return nil
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	for i := len(partOrder) - 1; i >= 0; i-- {
		patience := 10 * time.Second
		if !keep {
			patience = 0 // nothing of it is needed any more
		}
		if err := d.stop(partOrder[i], patience); err != nil {
			return err
		}
	}
	if keep {
		return nil
	}
	return d.remove()
}
