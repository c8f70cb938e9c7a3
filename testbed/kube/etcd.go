package main

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

const (
	etcdReadyWithin = time.Minute
	etcdQuotaBytes  = 4 << 30
)

// etcd runs a server with one member until it is told to end. It is a test bed: speed before durability.
func etcd(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("etcd", flag.ExitOnError)
	dir := flags.String("data-dir", "etcd", "data folder")
	client := flags.String("client-url", "http://127.0.0.1:2379", "URL it serves at")
	peer := flags.String("peer-url", "http://127.0.0.1:2380", "URL for peers; there are none, but etcd wants one")
	if err := flags.Parse(args); err != nil {
		return err
	}
	clients, err := url.Parse(*client)
	if err != nil {
		return fmt.Errorf("-client-url: %w", err)
	}
	peers, err := url.Parse(*peer)
	if err != nil {
		return fmt.Errorf("-peer-url: %w", err)
	}
	config := embed.NewConfig()
	config.Name, config.Dir = "testbed", *dir
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clients}, []url.URL{*clients}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peers}, []url.URL{*peers}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.UnsafeNoFsync = true
	config.LogLevel = "warn"
	config.QuotaBackendBytes = etcdQuotaBytes
	config.AutoCompactionMode, config.AutoCompactionRetention = "periodic", "5m"
	server, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer server.Close()
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(etcdReadyWithin):
		return fmt.Errorf("not ready within %s", etcdReadyWithin)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-server.Err():
		return err
	}
}
