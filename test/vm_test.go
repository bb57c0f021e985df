//go:build scenario

package test

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"polder/api"
)

// One VM under UEFI: it has the CPUs and the disk that were asked for, what crosses into it comes back whole, a kernel that was put in place
// inside boots next, in the same process, and a poweroff inside stops it for good.
func TestVMFromWithin(t *testing.T) {
	const name = "within"
	ve := launch(t, "debian/13", name, "--model", "vm", "--firmware", "uefi", "--cpus", "2", "--disk", "6GiB")
	must(t, "exec", name, "--", "test", "-d", "/sys/firmware/efi/efivars")
	if got := must(t, "exec", name, "--", "nproc"); got != "2" {
		t.Errorf("%s cpus inside, want 2", got)
	}
	eventually(t, time.Minute, func() string { // it grows while the boot goes on
		if mib := must(t, "exec", name, "--", "sh", "-c", "df --output=size -m / | tail -n 1 | tr -d ' '"); len(mib) < 4 || mib < "5500" {
			return "the root file system has " + mib + " MiB of a disk of 6 GiB"
		}
		return ""
	})
	checkNoise(t, name)

	bootID := must(t, "exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id")
	// As a kernel's package does it: new files, and the links moved to them. This one's initrd leaves a mark, by a second archive.
	must(t, "exec", name, "--", "sh", "-ec", `
		cp /vmlinuz /boot/vmlinuz-99; cp /initrd.img /boot/initrd.img-99
		mkdir -p /tmp/extra/conf/conf.d; cd /tmp/extra
		echo ': >/dev/kernel-99' >conf/conf.d/mark
		printf '%s\n' conf conf/conf.d conf/conf.d/mark | cpio --quiet -o -H newc >/tmp/mark
		truncate -s %4 /boot/initrd.img-99; cat /tmp/mark >>/boot/initrd.img-99
		ln -sfn boot/vmlinuz-99 /vmlinuz; ln -sfn boot/initrd.img-99 /initrd.img; sync
		(sleep 1; reboot) >/dev/null 2>&1 &`)
	eventually(t, 4*time.Minute, func() string {
		r := polder(t.Context(), "exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id")
		if r.code != 0 || strings.TrimSpace(r.out) == bootID {
			return "not rebooted: " + r.out + r.err
		}
		return ""
	})
	must(t, "exec", name, "--", "test", "-e", "/dev/kernel-99")
	if v := show[api.VE](t, "info", name); v.PID != ve.PID || v.State != api.Running {
		t.Errorf("after a reboot inside it is %s with pid %d, which was %d", v.State, v.PID, ve.PID)
	}

	must(t, "exec", name, "--", "sh", "-c", "(sleep 1; poweroff) >/dev/null 2>&1 &")
	eventually(t, 2*time.Minute, func() string {
		if v := show[api.VE](t, "info", name); v.State != api.Stopped || v.Restarts != 0 || v.PID != 0 {
			return "after a poweroff inside it is " + string(v.State) + ": " + v.Reason
		}
		return ""
	})
}

// checkNoise copies a directory with random bytes into a VE and back.
func checkNoise(t *testing.T, name string) {
	t.Helper()
	dir := t.TempDir()
	noise := make([]byte, 5_000_000)
	_, _ = rand.Read(noise) // never fails
	if err := os.MkdirAll(filepath.Join(dir, "d/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "d/sub/f"), noise, 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "cp", filepath.Join(dir, "d"), name+":/root/")
	must(t, "cp", name+":/root/d", filepath.Join(dir, "back"))
	if got, err := os.ReadFile(filepath.Join(dir, "back/sub/f")); err != nil || !bytes.Equal(got, noise) {
		t.Errorf("what was copied into %s and back is %d bytes, %v: not what it was", name, len(got), err)
	}
}
