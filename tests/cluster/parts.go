package main

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // the client's and work queues' metrics in /metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // kubernetes_build_info
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

const (
	etcdPart       = "etcd"
	apiServerPart  = "kube-apiserver"
	controllerPart = "kube-controller-manager"
)

// partOrder is the order in which the parts need one another.
var partOrder = []string{etcdPart, apiServerPart, controllerPart}

var parts = map[string]part{
	etcdPart: {etcdPart, runEtcd},
	apiServerPart: {apiServerPart, func(d layout, p ports) error {
		return runCommand(apiserver.NewAPIServerCommand(), apiServerFlags(d, p))
	}},
	controllerPart: {controllerPart, func(d layout, p ports) error {
		return runCommand(controllermanager.NewControllerManagerCommand(), controllerFlags(d, p))
	}},
}

type part struct {
	name string
	run  func(layout, ports) error
}

// runPart is the body of a part's process.
func runPart(p part, dir string) error {
	d := layout(dir)
	if err := os.Chdir(dir); err != nil {
		return err
	}
	ports, err := d.readPorts()
	if err != nil {
		return fmt.Errorf("%s is no cluster's folder: %w", dir, err)
	}
	if err := writeFile(d.pid(p.name), []byte(strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return err
	}
	go endWithoutPidFile(d, p.name)
	return p.run(d, ports)
}

// endWithoutPidFile ends this process when its pid file has gone or is somebody else's: a cluster whose folder was deleted (`cargo
// clean`) does not stay behind, out of reach of `down`.
func endWithoutPidFile(d layout, name string) {
	for {
		time.Sleep(time.Second)
		if pid, err := d.readPid(name); err != nil || pid != os.Getpid() {
			fmt.Fprintf(os.Stderr, "%s is not this process's any more, ending\n", d.pid(name))
			_ = unix.Kill(os.Getpid(), unix.SIGTERM)
			time.Sleep(5 * time.Second)
			os.Exit(1)
		}
	}
}

func runCommand(command *cobra.Command, flags []string) error {
	command.SetArgs(flags)
	if code := cli.Run(command); code != 0 {
		os.Exit(code) // cli.Run has said why
	}
	return nil
}

func runEtcd(d layout, _ ports) error {
	c := embed.NewConfig()
	c.Name = "test"
	c.Dir = d.file("etcd")
	clients, peers := url.URL{Scheme: "unix", Host: etcdSocket}, url.URL{Scheme: "unix", Host: etcdPeerSocket}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{clients}, []url.URL{clients}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.EnableGRPCGateway = false
	c.LogLevel = "warn"
	c.WarningUnaryRequestDuration = time.Second // unset it is 0: a warning for every request
	// Data outlives a killed process, not a crashed machine; enough for tests and much faster.
	c.UnsafeNoFsync = true
	// It is alone: it may call and win its election at once.
	c.TickMs, c.ElectionMs = 10, 100

	server, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	defer server.Close()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGTERM, unix.SIGINT)
	select {
	case <-interrupted:
		return nil
	case err := <-server.Err():
		return err
	}
}

// auditPolicy: who did what to which object, without bodies; one line a request, written before it is answered.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: Metadata
`

func apiServerFlags(d layout, p ports) []string {
	return []string{
		"--etcd-servers=unix://" + etcdSocket,
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(p.APIServer),
		"--endpoint-reconciler-type=none", // a loopback address may not be an endpoint
		"--service-cluster-ip-range=" + serviceCIDR,
		"--tls-cert-file=" + d.pki("apiserver.crt"),
		"--tls-private-key-file=" + d.pki("apiserver.key"),
		"--client-ca-file=" + d.pki("ca.crt"),
		"--anonymous-auth=false",
		"--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + d.pki("service-accounts.pub"),
		"--service-account-signing-key-file=" + d.pki("service-accounts.key"),
		"--allow-privileged=true",
		"--audit-policy-file=" + d.file("audit-policy.yaml"),
		"--audit-log-path=" + d.audit(),
		"--audit-log-mode=blocking",
		"--profiling=false",
	}
}

// controllers that are of use without nodes. No pod garbage collector: it would delete pods that a test has bound to a node.
var controllers = []string{
	"namespace-controller",
	"serviceaccount-controller",
	"serviceaccount-token-controller",
	"root-ca-certificate-publisher-controller",
	"clusterrole-aggregation-controller",
	"resourcequota-controller",
	"garbage-collector-controller",
	"job-controller",
	"cronjob-controller",
	"ttl-after-finished-controller",
	"statefulset-controller",
	"replicaset-controller",
	"deployment-controller",
	"disruption-controller",
	"persistentvolumeclaim-protection-controller", // or a deleted namespace waits for its claims' finalizers for ever
	"validatingadmissionpolicy-status-controller",
}

func controllerFlags(d layout, p ports) []string {
	return []string{
		"--kubeconfig=" + d.pki("kube-controller-manager.kubeconfig"),
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(p.ControllerManager),
		"--cert-dir=", // its own certificate, in memory
		"--leader-elect=false",
		"--controllers=" + strings.Join(controllers, ","),
		"--use-service-account-credentials=false",
		"--service-account-private-key-file=" + d.pki("service-accounts.key"),
		"--root-ca-file=" + d.pki("ca.crt"),
		"--kube-api-qps=500",
		"--kube-api-burst=1000",
		"--profiling=false",
	}
}
