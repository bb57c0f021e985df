package main

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// packages of the image.
var packages = []string{
	"nginx-light", "wrk", "postgresql", "redis-server", "redis-tools", "mariadb-server", "mariadb-client", "etcd-server", "etcd-client",
	"rabbitmq-server", "python3-pika", "nodejs", "openjdk-21-jre-headless", "python3", "openssh-server", "openssh-client", "tmux", "vim-tiny",
	"gcc", "make", "libc6-dev", "xz-utils", "openssl", "curl",
}

// loud are the units that would start by themselves.
var loud = []string{
	"nginx.service", "postgresql.service", "redis-server.service", "mariadb.service", "etcd.service", "rabbitmq-server.service",
	"epmd.socket", "epmd.service", "apt-daily.timer", "apt-daily-upgrade.timer",
}

// makeImage makes the image of which all VEs are, with every service and none that starts by itself: an emulated machine would be
// busy with that for minutes.
func (s *stage) makeImage(ctx context.Context) error {
	from := s.image
	if from == "" {
		const whole = image + "-whole"
		s.say("an image of %d packages and what they need", len(packages))
		if _, err := s.polderAs(ctx, "image", "build", "debian/13", "--alias", whole, "--package", strings.Join(packages, ",")); err != nil {
			return err
		}
		from = filepath.Join(s.work, "whole.tar")
		defer os.Remove(from)
		if _, err := s.polderAs(ctx, "image", "export", whole, from); err != nil {
			return err
		}
		if _, err := s.polderAs(ctx, "image", "delete", whole); err != nil {
			return err
		}
	}
	s.say("the image, with its services quiet")
	to := filepath.Join(s.work, "quiet.tar")
	defer os.Remove(to)
	if err := quiet(from, to); err != nil {
		return err
	}
	_, err := s.polderAs(ctx, "image", "import", to, image)
	return err
}

// quiet copies the tar of a root without the links by which loud units start.
func quiet(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	defer func() { err = errors.Join(err, w.Close(), out.Close()) }()
	for r := tar.NewReader(in); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if wants, unit := path.Split(header.Name); strings.HasSuffix(wants, ".wants/") && slices.Contains(loud, unit) {
			continue
		}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
}
