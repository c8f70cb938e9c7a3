package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	readyWithin = 3 * time.Minute
	endWithin   = 5 * time.Second
)

// options of `up`.
type options struct {
	dir, bind, advertise string
	port, etcdPort       int
	with                 []string
	controllers          string
	nodes                []string
	serviceCIDR, podCIDR string
	apiserverFlags       []string
}

func parseUp(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("up", flag.ExitOnError)
	flags.StringVar(&o.dir, "dir", "kube-testbed-state", "state folder")
	flags.StringVar(&o.bind, "bind", "127.0.0.1", "address the API server binds")
	flags.StringVar(&o.advertise, "advertise", "", "address pods reach the API server at; empty: the Service kubernetes has no endpoints")
	flags.IntVar(&o.port, "port", 6443, "port of the API server")
	flags.IntVar(&o.etcdPort, "etcd-port", 2379, "client port of etcd; the next one is its peer port")
	with := flags.String("with", "", "further components, comma-separated: kcm, sched")
	flags.StringVar(&o.controllers, "controllers", "*", "kube-controller-manager --controllers")
	nodes := flags.String("nodes", "", "NAME=ADDRESS[+ADDRESS],... nodes to write kubelet certificates for")
	flags.StringVar(&o.serviceCIDR, "service-cidr", "10.96.0.0/16", "service networks, comma-separated")
	flags.StringVar(&o.podCIDR, "pod-cidr", "10.244.0.0/16", "pod networks to give to nodes, comma-separated; empty: nodes get none")
	more := flags.String("apiserver-flags", "", "further kube-apiserver flags, separated by spaces")
	err := flags.Parse(args)
	o.with, o.nodes, o.apiserverFlags = split(*with), split(*nodes), strings.Fields(*more)
	return o, err
}

// server is the API server's URL.
func (o options) server() string {
	host := o.bind
	if o.advertise != "" {
		host = o.advertise
	}
	return fmt.Sprintf("https://%s:%d", host, o.port)
}

func (o options) pki(name string) string { return filepath.Join(o.dir, "pki", name) }

// up runs a control plane until it is told to end, or one of its parts dies.
func up(ctx context.Context, args []string) error {
	o, err := parseUp(args)
	if err != nil {
		return err
	}
	started := time.Now()
	if err := writePKI(filepath.Join(o.dir, "pki"), o.server(), split(o.advertise), o.nodes); err != nil {
		return err
	}
	parts, err := newParts(o.dir)
	if err != nil {
		return err
	}
	defer parts.end()
	if err := parts.start("etcd", o.etcdFlags()); err != nil {
		return err
	}
	if err := parts.start("kube-apiserver", o.apiserver()); err != nil {
		return err
	}
	if err := o.waitReady(ctx, parts); err != nil {
		return err
	}
	if slices.Contains(o.with, "kcm") {
		if err := parts.start("kube-controller-manager", o.controllerManager()); err != nil {
			return err
		}
	}
	if slices.Contains(o.with, "sched") {
		if err := parts.start("kube-scheduler", o.scheduler()); err != nil {
			return err
		}
	}
	fmt.Printf("ready in %.1fs: export KUBECONFIG=%s\n", time.Since(started).Seconds(), o.pki(adminFile))
	select {
	case died := <-parts.died:
		return died
	case <-ctx.Done():
		return nil
	}
}

func (o options) etcdURL() string { return fmt.Sprintf("http://127.0.0.1:%d", o.etcdPort) }

func (o options) etcdFlags() []string {
	return []string{
		"-data-dir", filepath.Join(o.dir, "etcd"),
		"-client-url", o.etcdURL(),
		"-peer-url", fmt.Sprintf("http://127.0.0.1:%d", o.etcdPort+1),
	}
}

func (o options) apiserver() []string {
	flags := []string{
		"--etcd-servers=" + o.etcdURL(),
		"--bind-address=" + o.bind,
		fmt.Sprintf("--secure-port=%d", o.port),
		"--tls-cert-file=" + o.pki("apiserver.crt"),
		"--tls-private-key-file=" + o.pki("apiserver.key"),
		"--client-ca-file=" + o.pki("ca.crt"),
		"--token-auth-file=" + o.pki("tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + o.pki("sa.crt"),
		"--service-account-signing-key-file=" + o.pki("sa.key"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--service-cluster-ip-range=" + o.serviceCIDR,
		"--kubelet-client-certificate=" + o.pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + o.pki("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority=" + o.pki("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + o.pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + o.pki("front-proxy-client.crt"),
		"--proxy-client-key-file=" + o.pki("front-proxy-client.key"),
		"--enable-aggregator-routing=true",
		"--profiling=false",
	}
	if o.advertise == "" {
		// Endpoints refuse a loopback address.
		flags = append(flags, "--endpoint-reconciler-type=none")
	} else {
		flags = append(flags, "--advertise-address="+o.advertise)
	}
	return append(flags, o.apiserverFlags...)
}

// client are the flags that controllers and scheduler share.
func (o options) client(user string, port int) []string {
	kubeconfig := o.pki(user + ".kubeconfig")
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", port),
		"--leader-elect=false",
		"--kube-api-qps=500",
		"--kube-api-burst=1000",
	}
}

func (o options) controllerManager() []string {
	flags := append(o.client("kube-controller-manager", o.port+1000),
		"--service-account-private-key-file="+o.pki("sa.key"),
		"--root-ca-file="+o.pki("ca.crt"),
		"--cluster-signing-cert-file="+o.pki("ca.crt"),
		"--cluster-signing-key-file="+o.pki("ca.key"),
		"--use-service-account-credentials=true",
		"--service-cluster-ip-range="+o.serviceCIDR,
		"--controllers="+o.controllers,
	)
	if o.podCIDR != "" {
		flags = append(flags, "--allocate-node-cidrs=true", "--cluster-cidr="+o.podCIDR)
	}
	return flags
}

func (o options) scheduler() []string { return o.client("kube-scheduler", o.port+1001) }

// waitReady asks the API server until it says that it is ready.
func (o options) waitReady(ctx context.Context, parts *parts) error {
	authority, err := os.ReadFile(o.pki("ca.crt"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	client := &http.Client{
		Timeout:   2 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}},
	}
	deadline := time.After(readyWithin)
	for {
		if response, err := client.Get(o.server() + "/readyz"); err == nil {
			_ = response.Body.Close() // nothing was read from it
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case died := <-parts.died:
			return died
		case <-ctx.Done():
			return errors.New("told to end before the API server was ready")
		case <-deadline:
			return fmt.Errorf("the API server is not ready after %s; see %s", readyWithin, parts.log("kube-apiserver"))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// parts are the processes of a control plane.
type parts struct {
	dir, self string
	commands  []*exec.Cmd
	ended     []chan struct{}
	died      chan error
}

func newParts(dir string) (*parts, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return &parts{dir: dir, self: self, died: make(chan error, 4)}, os.MkdirAll(filepath.Join(dir, "logs"), 0o755)
}

func (p *parts) log(name string) string { return filepath.Join(p.dir, "logs", name+".log") }

// start starts this binary again as a component; its process id goes to DIR/NAME.pid, so that a test can kill it.
func (p *parts) start(name string, flags []string) error {
	log, err := os.Create(p.log(name))
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.Command(p.self, append([]string{name}, flags...)...)
	command.Stdout, command.Stderr = log, log
	// A process group of its own: Ctrl-C reaches only us, and we end the parts in order.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := command.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	p.commands, p.ended = append(p.commands, command), append(p.ended, ended)
	go func() {
		err := command.Wait()
		p.died <- fmt.Errorf("%s ended (%v); see %s", name, err, p.log(name))
		close(ended)
	}()
	return os.WriteFile(filepath.Join(p.dir, name+".pid"), fmt.Append(nil, command.Process.Pid), 0o644)
}

// end stops the parts, the last one first, and kills those that take too long over it.
func (p *parts) end() {
	for _, command := range slices.Backward(p.commands) {
		_ = command.Process.Signal(syscall.SIGTERM) // an error says that it is gone already
	}
	late := time.AfterFunc(endWithin, func() {
		for _, command := range p.commands {
			_ = command.Process.Kill()
		}
	})
	defer late.Stop()
	for _, ended := range p.ended {
		<-ended
	}
}
