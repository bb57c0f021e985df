//go:build integration

package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"testing"
)

// TestMain makes the test binary stand in for the program that lab hosts run, and for a lab command that gets killed.
func TestMain(m *testing.M) {
	args := os.Args[1:]
	switch {
	case len(args) >= 2 && args[0] == "lab" && args[1] == "enter":
		fail(Enter())
	case len(args) >= 2 && args[0] == "lab" && args[1] == "init":
		fail(Init())
	case len(args) >= 1 && args[0] == "serve":
		fail(standIn())
	case len(args) >= 2 && args[0] == "up":
		fail(upAlone(args[1]))
	default:
		os.Exit(m.Run())
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// standIn answers as a daemon without VEs does.
func standIn() error {
	const socket = "/run/polder/polder.sock"
	os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintln(w, "[]")
	}))
}

// upAlone is `polder lab up --hosts 2` in a process of its own.
func upAlone(dir string) error {
	l, err := openTest(dir)
	if err != nil {
		return err
	}
	_, err = l.Up(context.Background(), UpOptions{Hosts: 2, Alone: true, PoolSize: leastPoolSize})
	return err
}

// openTest opens a lab whose hosts' root is the root of this machine: tests run on a lab host, which has all it takes.
func openTest(dir string) (*Lab, error) {
	return OpenOn("/", dir, dir+".cache")
}
