package main

import (
	"archive/tar"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"polder/api"
	"polder/internal/command"
)

// The images that are moved: Debian with the load as a service of its systemd, the load alone, and the load alone on Debian's
// kernel: a VM that is up in seconds, even emulated, and does nothing that it was not told to.
const (
	loadedImage  = "bench/system"
	serviceImage = "bench/service"
	vmImage      = "bench/vm"
)

//go:embed guest/init guest/lease
var insideFiles embed.FS

// tarred is an entry of a tar; with to, a link; with a slash at the end, a directory.
type tarred struct {
	name    string
	mode    int64
	content []byte
	to      string
}

// images makes those that are missing.
func (m *moves) images(ctx context.Context) error {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	release := tarred{"etc/os-release", 0o644, []byte("ID=bench\n"), ""}
	service := []tarred{{"sbin/init", 0o755, program, ""}, release}
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "var/tmp", "root"} {
		service = append(service, tarred{name: dir + "/", mode: 0o755})
	}
	if err := m.importImage(ctx, serviceImage, "", nil, service); err != nil {
		return err
	}
	base, err := m.base(ctx)
	if err != nil {
		return err
	}
	if base != m.moveOptions.image {
		defer os.Remove(base)
	}
	files, err := m.inside(ctx, base, program)
	if err != nil {
		return err
	}
	kernel := func(name string) bool {
		return strings.HasPrefix(name, "boot/vmlinuz-") || strings.HasPrefix(name, "boot/initrd.img-")
	}
	if err := m.importImage(ctx, vmImage, base, kernel, append(files, release)); err != nil {
		return err
	}
	unit := "[Unit]\nAfter=network.target\n[Service]\nExecStart=/usr/local/bin/bench inside-load\n"
	return m.importImage(ctx, loadedImage, base, func(string) bool { return true }, []tarred{
		{"usr/local/bin/bench", 0o755, program, ""},
		{"etc/systemd/system/bench.service", 0o644, []byte(unit), ""},
		{"etc/systemd/system/multi-user.target.wants/bench.service", 0o777, nil, "../bench.service"},
	})
}

// base is a tar of debian/13.
func (m *moves) base(ctx context.Context) (string, error) {
	if m.moveOptions.image != "" {
		return m.moveOptions.image, nil
	}
	if _, err := m.cli(ctx, "image", "build", systemImage); err != nil {
		return "", err
	}
	file := filepath.Join(m.dir, "system.tar")
	_, err := m.cli(ctx, "image", "export", systemImage, file, "--force")
	return file, err
}

// inside is what is in the VM's image besides its kernel.
func (m *moves) inside(ctx context.Context, base string, program []byte) ([]tarred, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("%w: apt-get install busybox-static", err)
	}
	all := []tarred{
		{"usr/bin/busybox", 0o755, busybox, ""},
		{"usr/bin/bench", 0o755, program, ""},
		{"bin", 0o777, nil, "usr/bin"},
		{"sbin", 0o777, nil, "usr/sbin"},
	}
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "var/tmp", "root"} {
		all = append(all, tarred{name: dir + "/", mode: 0o755})
	}
	for name, place := range map[string]string{"guest/init": "usr/sbin/init", "guest/lease": "usr/bin/lease"} {
		content, err := insideFiles.ReadFile(name)
		if err != nil {
			return nil, err
		}
		all = append(all, tarred{place, 0o755, content, ""})
	}
	wanted := map[string]bool{"failover.ko.xz": true, "net_failover.ko.xz": true, "virtio_net.ko.xz": true}
	err = eachIn(base, func(h *tar.Header, content io.Reader) error {
		name := path.Base(h.Name)
		if !wanted[name] {
			return nil
		}
		out, err := command.Run(ctx, content, "xz", "-dc")
		all = append(all, tarred{"modules/" + strings.TrimSuffix(name, ".xz"), 0o644, out, ""})
		return err
	})
	return all, err
}

func eachIn(file string, do func(h *tar.Header, content io.Reader) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := do(h, r); err != nil {
			return err
		}
	}
}

// importImage imports what is kept of a tar, and more, unless there is such an image.
func (m *moves) importImage(ctx context.Context, name, base string, keep func(name string) bool, more []tarred) error {
	if _, err := m.client.Image(ctx, name); api.KindOf(err) != api.NotFound {
		return err
	}
	file := filepath.Join(m.dir, "image.tar")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	defer f.Close()
	w := tar.NewWriter(f)
	if base != "" {
		if err := eachIn(base, func(h *tar.Header, content io.Reader) error {
			if !keep(strings.TrimPrefix(h.Name, "./")) {
				return nil
			}
			if err := w.WriteHeader(h); err != nil {
				return err
			}
			_, err := io.Copy(w, content)
			return err
		}); err != nil {
			return err
		}
	}
	for _, e := range more {
		h := &tar.Header{Name: "./" + e.name, Mode: e.mode, Size: int64(len(e.content)), Linkname: e.to, ModTime: time.Now(), Typeflag: tar.TypeReg}
		switch {
		case e.to != "":
			h.Typeflag = tar.TypeSymlink
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(e.content); err != nil {
			return err
		}
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		return err
	}
	_, err = m.cli(ctx, "image", "import", file, name)
	return err
}
