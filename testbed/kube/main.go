// Command kube-testbed holds Kubernetes' own components in one binary, built only from Go modules, and starts a control
// plane from them.
//
//	kube-testbed up FLAGS         certificates, etcd, kube-apiserver and, with -with, controllers and scheduler
//	kube-testbed pki FLAGS        only certificates and kubeconfigs
//	kube-testbed forward FLAGS    a loopback port of this namespace that leads into another one
//	kube-testbed etcd FLAGS
//	kube-testbed COMPONENT FLAGS  kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// components are upstream's commands. They run as processes of their own, not as goroutines: each owns its global flags,
// metrics and logs, and each can be killed alone.
var components = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllers.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"kube-proxy":              proxy.NewProxyCommand,
}

// ours are the subcommands that are not upstream's.
var ours = map[string]func(ctx context.Context, args []string) error{
	"up":      up,
	"pki":     pkiOnly,
	"etcd":    etcd,
	"forward": forward,
}

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	name, args := os.Args[1], os.Args[2:]
	if run, ok := ours[name]; ok {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		if err := run(ctx, args); err != nil {
			fmt.Fprintf(os.Stderr, "kube-testbed %s: %v\n", name, err)
			os.Exit(1)
		}
		return
	}
	newCommand, ok := components[name]
	if !ok {
		usage()
	}
	os.Args = append([]string{name}, args...) // the kubelet parses os.Args by itself
	command := newCommand()
	command.SetArgs(args)
	os.Exit(cli.Run(command))
}

func usage() {
	names := append(slices.Sorted(maps.Keys(ours)), slices.Sorted(maps.Keys(components))...)
	fmt.Fprintf(os.Stderr, "usage: kube-testbed %s [flags]\n", strings.Join(names, "|"))
	os.Exit(2)
}

// split cuts a comma-separated flag; an empty one has no parts.
func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}
