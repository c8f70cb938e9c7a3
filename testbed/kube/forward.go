package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// forward listens in the namespace it is started in and connects in another one, so that kubectl needs no nsenter.
func forward(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("forward", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:16443", "loopback address to listen at")
	netns := flags.String("netns", "", "file of the network namespace to connect in")
	to := flags.String("to", "", "address to connect to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	namespace, err := os.Open(*netns)
	if err != nil {
		return fmt.Errorf("-netns: %w", err)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("-listen: %w", err)
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	for {
		near, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer near.Close()
			far, err := dialInside(namespace, *to)
			if err != nil {
				fmt.Fprintf(os.Stderr, "forward: %v\n", err)
				return
			}
			defer far.Close()
			go func() {
				_, _ = io.Copy(far, near) // either end may leave at any time; that ends the other copy
				_ = far.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(near, far)
		}()
	}
}

// dialInside connects from a thread that is in the namespace. The thread is not unlocked, so Go throws it away after.
func dialInside(namespace *os.File, to string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("entering %s: %w", namespace.Name(), err)}
			return
		}
		conn, err := net.Dial("tcp", to)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
