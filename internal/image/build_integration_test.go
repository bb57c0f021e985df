//go:build integration

package image

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"polder/api"
	"polder/internal/storage"
	"polder/internal/storage/btrfs"
)

// onBtrfs moves a world's pool to where the tests' temporary directory is, which must be a btrfs.
func onBtrfs(t testing.TB, w *world) {
	t.Helper()
	var err error
	if w.pool, err = btrfs.Open(t.Context(), "test", filepath.Join(w.dir, "pool")); err != nil {
		t.Fatal(err)
	}
	w.boot(t)
	// Read-only subvolumes are not removed like directories.
	t.Cleanup(func() {
		ctx := context.Background()
		volumes, _ := w.pool.Volumes(ctx)
		for _, v := range volumes {
			_ = w.pool.Delete(ctx, v.ID)
		}
		images, _ := w.lib.List(ctx)
		for _, i := range images {
			_ = w.pool.DeleteBase(ctx, TreeBase(i), storage.Tree)
			_ = w.pool.DeleteBase(ctx, DiskBase(i), storage.Disk)
		}
		_ = w.pool.Tidy(ctx)
	})
}

func TestBuildBoots(t *testing.T) {
	w := newWorld(t)
	onBtrfs(t, w)
	start := time.Now()
	op, err := w.lib.Build(t.Context(), api.ImageBuildRequest{Source: "debian/13"})
	op = w.wait(t, op, err)
	if op.State != api.OperationDone {
		t.Fatalf("%s: %+v", op.State, op.Error)
	}
	for _, s := range op.Steps {
		t.Logf("step %s: %.1f s", s.Name, s.FinishedAt.Sub(*s.StartedAt).Seconds())
	}
	t.Logf("built in %.1f s", time.Since(start).Seconds())
	image, err := w.lib.Resolve(t.Context(), "debian/13")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", image)
	if image.Kernel == "" || len(image.Models) != 2 || image.OS != "debian" || image.Release != "13" {
		t.Fatalf("%+v", image)
	}
	size := api.Bytes(6 << 30)
	v, err := w.pool.Clone(t.Context(), DiskBase(image), storage.Disk, "v1", size)
	if err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	if err := PrepareDisk(t.Context(), v.Path, v.Format, size); err != nil {
		t.Fatal(err)
	}
	t.Logf("prepared in %v", time.Since(start))
	for _, firmware := range []api.Firmware{api.BIOS, api.UEFI} {
		t.Run(string(firmware), func(t *testing.T) { bootDisk(t, w, v, firmware, image) })
	}
}

// bootDisk boots a disk until the guest agent answers, and looks at the system.
func bootDisk(t *testing.T, w *world, v storage.Volume, firmware api.Firmware, image api.Image) {
	m := startMachine(t, w.dir, v, firmware)
	start := time.Now()
	m.waitAgent(t)
	t.Logf("the agent answers after %.1f s", time.Since(start).Seconds())
	if got := m.run(t, "uname -r"); got != image.Kernel {
		t.Errorf("kernel %q, want %q", got, image.Kernel)
	}
	if got := m.run(t, "systemctl is-system-running --wait"); got != "running" {
		t.Errorf("system is %q: %s", got, m.run(t, "systemctl --failed; journalctl -p warning -b"))
	}
	t.Logf("running after %.1f s", time.Since(start).Seconds())
	t.Log(m.run(t, "systemd-analyze"))
	if got := m.run(t, "df --output=size -BG / | tail -1"); strings.TrimSpace(got) != "6G" {
		t.Errorf("the root file system did not grow: %q", got)
	}
	if got := m.run(t, "wc -c < /etc/machine-id; ls /etc/ssh/*_key | wc -l"); got != "33\n2" {
		t.Errorf("identity: %q", got)
	}
	if log := m.console(t); !strings.Contains(log, "login:") {
		t.Errorf("no login prompt: %q", log)
	}
}

// machine is a QEMU process.
type machine struct {
	agent string
	log   string
	asked int
}

func startMachine(t *testing.T, dir string, v storage.Volume, firmware api.Firmware) *machine {
	t.Helper()
	m := &machine{agent: filepath.Join(dir, "agent"), log: filepath.Join(dir, "console")}
	_ = os.Remove(m.agent)
	args := []string{
		"-machine", "q35,accel=tcg", "-cpu", "Nehalem", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "file:" + m.log,
		"-drive", "if=none,id=d,file=" + v.Path + ",format=" + v.Format, "-device", "virtio-blk-pci,drive=d",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=a,server=on,wait=off,path=" + m.agent,
		"-device", "virtserialport,chardev=a,name=org.qemu.guest_agent.0", "-device", "virtio-rng-pci",
	}
	if firmware == api.UEFI {
		vars := filepath.Join(dir, "vars.fd")
		content, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vars, content, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd", "-drive", "if=pflash,format=raw,file="+vars)
	}
	cmd := exec.Command("qemu-system-x86_64", args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return m
}

func (m *machine) console(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(m.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// ask sends one command to the guest agent. Answers to questions that nobody waited for come first: they are skipped.
func (m *machine) ask(timeout time.Duration, command string, arguments, answer any) error {
	c, err := net.Dial("unix", m.agent)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(timeout))
	lines := bufio.NewReader(c)
	m.asked++
	id := m.asked
	if err := send(c, "guest-sync", map[string]any{"id": id}); err != nil {
		return err
	}
	for {
		var synced struct {
			Return any `json:"return"`
		}
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		if json.Unmarshal(line, &synced) == nil && synced.Return == float64(id) {
			break
		}
	}
	if err := send(c, command, arguments); err != nil {
		return err
	}
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return err
	}
	var reply struct {
		Return json.RawMessage `json:"return"`
		Error  any             `json:"error"`
	}
	if err := json.Unmarshal(line, &reply); err != nil {
		return err
	}
	if reply.Error != nil {
		return fmt.Errorf("%s: %v", command, reply.Error)
	}
	return json.Unmarshal(reply.Return, answer)
}

func send(w io.Writer, command string, arguments any) error {
	return json.NewEncoder(w).Encode(map[string]any{"execute": command, "arguments": arguments})
}

func (m *machine) waitAgent(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for time.Now().Before(deadline) {
		var answer any
		if err := m.ask(500*time.Millisecond, "guest-ping", struct{}{}, &answer); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the guest agent does not answer; console: %s", m.console(t))
}

// run runs a shell command inside and gives its output.
func (m *machine) run(t *testing.T, script string) string {
	t.Helper()
	var started struct {
		PID int `json:"pid"`
	}
	request := map[string]any{"path": "/bin/sh", "arg": []string{"-c", script}, "capture-output": true}
	if err := m.ask(time.Minute, "guest-exec", request, &started); err != nil {
		t.Fatal(err)
	}
	for range 1200 {
		var status struct {
			Exited bool   `json:"exited"`
			Out    []byte `json:"out-data"`
		}
		if err := m.ask(time.Minute, "guest-exec-status", started, &status); err != nil {
			t.Fatal(err)
		}
		if status.Exited {
			return strings.TrimSpace(string(status.Out))
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s: does not end", script)
	return ""
}

// exports writes an image to a file.
func exports(t *testing.T, w *world, ref string, format api.ImageFormat, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := w.lib.Export(context.Background(), ref, format, io.Writer(f)); err != nil {
		t.Fatal(err)
	}
}
