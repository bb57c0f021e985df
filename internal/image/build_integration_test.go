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
	"slices"
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
	// The archive of the built tree is what its digest was made of.
	file := filepath.Join(w.dir, "export.tar")
	exports(t, w, "debian/13", api.FormatTar, file)
	importPath(t, w, "again", file)
	if again, err := w.lib.Resolve(t.Context(), "again"); err != nil || again.Digest != image.Digest {
		t.Errorf("exported and imported, it is another: %+v, %v", again, err)
	}
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
	for end := time.Now().Add(time.Minute); !strings.Contains(m.console(t), "login:"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no login prompt: %q", m.console(t))
		}
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

// TestFormatsRoundTrip takes a tree with all that a system has through every format and back.
func TestFormatsRoundTrip(t *testing.T) {
	w := newWorld(t)
	onBtrfs(t, w)
	source := filepath.Join(w.dir, "source.tar")
	makeSystem(t, source)
	importPath(t, w, "system", source)
	system, err := w.lib.Resolve(t.Context(), "system")
	if err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(w.dir, "want.tar")
	exports(t, w, "system", api.FormatTar, want)
	for _, format := range []api.ImageFormat{api.FormatSquashFS, api.FormatOCI, api.FormatTar} {
		t.Run(string(format), func(t *testing.T) {
			file, got := filepath.Join(w.dir, "file"), filepath.Join(w.dir, "got.tar")
			exports(t, w, "system", format, file)
			importPath(t, w, "back/"+string(format), file)
			exports(t, w, "back/"+string(format), api.FormatTar, got)
			sameFile(t, want, got)
		})
	}
	t.Run("xz", func(t *testing.T) {
		if out, err := exec.Command("xz", "-0", "--keep", source).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		importPath(t, w, "xz", source+".xz")
		if got, err := w.lib.Resolve(t.Context(), "xz"); err != nil || got.Digest != system.Digest {
			t.Errorf("%+v, %v", got, err)
		}
		content, err := os.ReadFile(source + ".xz")
		if err != nil {
			t.Fatal(err)
		}
		for what, bad := range map[string][]byte{"truncated": content[:len(content)/2], "damaged": append(append([]byte{}, content[:len(content)-40]...), make([]byte, 40)...)} {
			if op := w.importFile(t, "bad", bad); op.State != api.OperationFailed || op.Error.Kind != api.Invalid || !strings.Contains(op.Error.Detail, what) {
				t.Errorf("%s: %s %+v", what, op.State, op.Error)
			}
		}
	})
	for _, format := range []api.ImageFormat{api.FormatRaw, api.FormatQcow2} {
		t.Run(string(format), func(t *testing.T) {
			if !slices.Contains(system.Models, api.VM) {
				t.Fatalf("models %v", system.Models)
			}
			file := filepath.Join(w.dir, "file")
			exports(t, w, "system", format, file)
			importPath(t, w, "back/"+string(format), file)
			back, err := w.lib.Resolve(t.Context(), "back/"+string(format))
			if err != nil || back.DiskBytes != system.DiskBytes || !slices.Equal(back.Models, []api.Model{api.VM}) {
				t.Fatalf("%+v, %v", back, err)
			}
			one, err := w.pool.Base(t.Context(), DiskBase(system), storage.Disk)
			if err != nil {
				t.Fatal(err)
			}
			two, err := w.pool.Base(t.Context(), DiskBase(back), storage.Disk)
			if err != nil {
				t.Fatal(err)
			}
			sameFile(t, one, two)
			// Cut off, it is refused.
			if err := os.Truncate(file, info(t, file).Size()/2); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			op, err := w.lib.Import(t.Context(), api.ImageImportRequest{Alias: "cut"}, f)
			if op = w.wait(t, op, err); op.State != api.OperationFailed || op.Error.Kind != api.Invalid {
				t.Errorf("a disk that was cut off: %s %+v", op.State, op.Error)
			}
		})
	}
}

// makeSystem packs a tree of the host's own shell, with a pretended kernel, and with owners, modes, attributes and links of all sorts.
func makeSystem(t *testing.T, path string) {
	t.Helper()
	tree := t.TempDir()
	script := `set -e; cd ` + tree + `
mkdir -p sbin etc boot usr/bin usr/lib var/empty; chmod 711 var/empty; chown 33:44 var/empty
cp /bin/sh bin-sh; mkdir bin; mv bin-sh bin/sh; cp /bin/cat usr/bin/cat; setcap cap_net_raw+ep usr/bin/cat; ln usr/bin/cat usr/bin/tac
chmod 4755 bin/sh; printf '#!/bin/sh\n' > sbin/init; chmod 755 sbin/init; ln -s ../bin/sh usr/bin/sh; ln -s /etc/abs etc/link
echo ID=test > etc/os-release; echo k > boot/vmlinuz-1.2-test; echo i > boot/initrd.img-1.2-test; setfattr -n user.note -v hi etc/os-release
echo 'UUID=00000000-0000-0000-0000-000000000000 / ext4 defaults 0 1' > etc/fstab; truncate -s 100M usr/lib/sparse; echo end >> usr/lib/sparse
mkfifo var/pipe; echo ü > 'etc/nämé with blanks'; find . -exec touch -h -d @1700000000 {} +
tar --xattrs --xattrs-include='*' -cf ` + path + ` .`
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func importPath(t *testing.T, w *world, alias, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	op, err := w.lib.Import(t.Context(), api.ImageImportRequest{Alias: alias, Filename: path}, f)
	if op = w.wait(t, op, err); op.State != api.OperationDone {
		t.Fatalf("import %s: %+v", alias, op.Error)
	}
}

func info(t *testing.T, path string) os.FileInfo {
	t.Helper()
	i, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func sameFile(t *testing.T, one, two string) {
	t.Helper()
	if out, err := exec.Command("cmp", one, two).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
