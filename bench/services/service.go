package main

import (
	"embed"
	"fmt"
)

// scripts are one directory for each service: serve sets it up and starts it in the VE, load uses it from another VE, fails when
// anything failed, and prints in its last line how much it did, check compares that with what the VE has. They lie in /srv/in.
//
//go:embed in
var scripts embed.FS

// service is one that is moved while in use.
type service struct {
	name string // of its directory
	what string // it is, and what uses it
	unit string // of systemd
	// Work of its own instead of load from outside, of this size in a container and in a vm.
	container, vm int
}

var services = []service{
	{name: "nginx", what: "nginx under wrk", unit: "nginx"},
	{name: "postgresql", what: "PostgreSQL under pgbench", unit: "postgresql@17-main"},
	{name: "redis", what: "Redis under redis-benchmark, and a counter", unit: "redis-server"},
	{name: "sshd", what: "sshd: a session with tmux and a vim that is typed into", unit: "ssh"},
	{name: "python", what: "Python asyncio with TLS, 20 connections", unit: "bench-python"},
	{name: "mariadb", what: "MariaDB, a session of inserts", unit: "mariadb"},
	{name: "etcd", what: "etcd, puts and one watch", unit: "etcd"},
	{name: "rabbitmq", what: "RabbitMQ, confirmed and consumed in order", unit: "rabbitmq-server"},
	{name: "node", what: "Node.js HTTP and timers under wrk", unit: "bench-node"},
	{name: "jvm", what: "JVM (OpenJDK 21, its HTTP server) under wrk", unit: "bench-jvm"},
	{name: "make", what: "make -j2 with gcc", unit: "bench-make", container: 40, vm: 2},
	{name: "xz", what: "a stream through xz -9", unit: "bench-xz", container: 5_000_000, vm: 1_000_000},
}

func (s service) script(name string) string { return fmt.Sprintf("/srv/in/%s/%s", s.name, name) }

// busy says whether the service works by itself, without load from outside.
func (s service) busy() bool { return s.container > 0 }
