// Command e2e-netpol is upstream's NetworkPolicy suite (k8s.io/kubernetes/test/e2e/network/netpol) as a program of its
// own: the whole e2e.test is four times as large and takes as much longer to build.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/testinit"
	"k8s.io/klog/v2"
	_ "k8s.io/kubernetes/test/e2e/feature"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	e2enode "k8s.io/kubernetes/test/e2e/framework/node"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
	_ "k8s.io/kubernetes/test/e2e/network/netpol"
	imageutils "k8s.io/kubernetes/test/utils/image"
)

// outcome is what ginkgo needs of a testing.T.
type outcome struct{ failed bool }

func (o *outcome) Fail() { o.failed = true }

var _ = ginkgo.SynchronizedBeforeSuite(nodesAreReady, addressFamilyIsKnown)

func nodesAreReady(ctx context.Context) []byte {
	client, err := framework.LoadClientset()
	framework.ExpectNoError(err)
	within := framework.NewTimeoutContext().NodeSchedulable
	framework.ExpectNoError(e2enode.WaitForAllNodesSchedulable(ctx, client, within))
	nodes, err := e2enode.GetReadySchedulableNodes(ctx, client)
	framework.ExpectNoError(err)
	framework.TestContext.CloudConfig.NumNodes = len(nodes.Items)
	return nil
}

func addressFamilyIsKnown(ctx context.Context, _ []byte) {
	client, err := framework.LoadClientset()
	framework.ExpectNoError(err)
	service, err := client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	framework.ExpectNoError(err)
	framework.TestContext.IPFamily = "ipv4"
	if ip := net.ParseIP(service.Spec.ClusterIP); ip != nil && ip.To4() == nil {
		framework.TestContext.IPFamily = "ipv6"
	}
}

func main() {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	image := flag.Bool("image", false, "print the image that the suite's pods use, and end")
	flag.Parse()
	if *image {
		fmt.Println(imageutils.GetE2EImage(imageutils.Agnhost))
		return
	}
	framework.AfterReadingAllFlags(&framework.TestContext)
	logs.InitLogs()
	defer logs.FlushLogs()
	klog.EnableContextualLogging(true)
	gomega.RegisterFailHandler(framework.Fail)
	suite, reporter := framework.CreateGinkgoConfig()
	result := &outcome{}
	if !ginkgo.RunSpecs(result, "Kubernetes NetworkPolicy", suite, reporter) || result.failed {
		logs.FlushLogs()
		os.Exit(1)
	}
}
