// Command cluster is a Kubernetes control plane for tests: etcd, kube-apiserver and kube-controller-manager of the version that
// go.mod names, and the custom resources that tenancy-fixer meets. No kubelet: pods stay Pending.
//
//	cluster up [DIR]                       starts what does not run, prints the kubeconfig's path
//	cluster down [--keep] [DIR]            ends what runs, removes the data
//	cluster etcd DIR                       one part, in the foreground; `up` starts them like this, detached
//	cluster kube-apiserver DIR
//	cluster kube-controller-manager DIR
//	cluster collect-crds FROM OUT          reads the real CRDs out of the module cache (build step)
//
// The scripts `up` and `down` beside this file build it and call it. The parts are processes of their own because they share
// global state (feature gates, metrics registries), and because tests kill and restart the API server alone.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	flag "github.com/spf13/pflag"
)

func main() {
	err := run(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: cluster up|down|etcd|kube-apiserver|kube-controller-manager|collect-crds ...")
	}
	command, args := args[0], args[1:]
	if part, ok := parts[command]; ok {
		if len(args) != 1 {
			return fmt.Errorf("usage: cluster %s DIR", command)
		}
		return runPart(part, args[0])
	}

	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	switch command {
	case "up":
		timeout := flags.Duration("timeout", time.Minute, "give up after this time")
		crds := flags.String("crds", filepath.Join(executableDir(), "crds"), "folder of the CRDs to install")
		if err := flags.Parse(args); err != nil {
			return err
		}
		dir, err := dirArgument(flags)
		if err != nil {
			return err
		}
		return up(dir, *crds, *timeout)
	case "down":
		keep := flags.Bool("keep", false, "keep the data, certificates, ports and logs: the next up continues with them")
		if err := flags.Parse(args); err != nil {
			return err
		}
		dir, err := dirArgument(flags)
		if err != nil {
			return err
		}
		return down(dir, *keep)
	case "collect-crds":
		if len(args) != 2 {
			return errors.New("usage: cluster collect-crds FROM OUT")
		}
		return collectCRDs(args[0], args[1])
	}
	return fmt.Errorf("unknown command %q", command)
}

func dirArgument(flags *flag.FlagSet) (layout, error) {
	if flags.NArg() > 1 {
		return "", fmt.Errorf("one DIR is enough, got %q", flags.Args())
	}
	dir := filepath.Join(executableDir(), "..", "cluster") // target/cluster
	if flags.NArg() == 1 {
		dir = flags.Arg(0)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// The parts are recognised by this path in their command lines, so it must have one spelling only.
	if resolved, err := filepath.EvalSymlinks(abs); err == nil {
		abs = resolved
	}
	return layout(abs), nil
}

func executableDir() string {
	exe, err := os.Executable()
	if err != nil {
		return "."
	}
	return filepath.Dir(exe)
}
