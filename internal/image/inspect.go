package image

import (
	"bufio"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// system is what can be learnt about an operating system from its files.
type system struct {
	OS, Release, Pretty string
	Arch                string
	Kernel              kernel
	Init                bool // it has an init to boot
	CloudInit           bool
}

// inspect reads os-release, the kernel and the architecture. What it can't find stays empty.
func inspect(tree string) (system, error) {
	s := system{}
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		content, err := readInTree(tree, name)
		if err != nil {
			continue
		}
		fields := parseOSRelease(string(content))
		s.OS, s.Release, s.Pretty = fields["ID"], fields["VERSION_ID"], fields["PRETTY_NAME"]
		if s.Release == "" {
			s.Release = fields["VERSION_CODENAME"]
		}
		break
	}
	for _, name := range []string{"sbin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd"} {
		s.Init = s.Init || isFile(tree, name)
	}
	for _, name := range []string{"usr/bin/cloud-init", "usr/sbin/cloud-init"} {
		s.CloudInit = s.CloudInit || isFile(tree, name)
	}
	s.Arch = treeArch(tree)
	var err error
	s.Kernel, err = findKernel(tree)
	return s, err
}

// parseOSRelease reads os-release(5).
func parseOSRelease(text string) map[string]string {
	fields := map[string]string{}
	scan := bufio.NewScanner(strings.NewReader(text))
	for scan.Scan() {
		key, value, ok := strings.Cut(strings.TrimSpace(scan.Text()), "=")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		if unquoted, err := strconv.Unquote(value); err == nil {
			value = unquoted
		} else {
			value = strings.Trim(value, "'\"")
		}
		fields[key] = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return -1
			}
			return r
		}, value)
	}
	return fields
}

// machines maps an ELF header's e_machine to Debian's name of the architecture.
var machines = map[uint16]string{0x3e: "amd64", 0xb7: "arm64", 0x03: "i386", 0xf3: "riscv64", 0x15: "ppc64el", 0x16: "s390x"}

// treeArch is the architecture of the programs in a tree.
func treeArch(tree string) string {
	for _, name := range []string{"bin/sh", "usr/bin/env", "sbin/init", "bin/busybox"} {
		head, err := readInTree(tree, name)
		if err == nil && len(head) >= 20 && string(head[:4]) == "\x7fELF" {
			return machines[uint16(head[18])|uint16(head[19])<<8]
		}
	}
	return ""
}

// kernelVersion is the part of a kernel's file name that we let into GRUB's configuration.
var kernelVersion = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]*$`)

// findKernel finds the newest kernel in /boot that has an initrd; one without an initrd is better than none.
func findKernel(tree string) (kernel, error) {
	var best kernel
	for _, name := range listInTree(tree, "boot") {
		version, ok := strings.CutPrefix(name, "vmlinuz-")
		if !ok || len(version) > 128 || !kernelVersion.MatchString(version) || strings.HasSuffix(version, ".old") || !isFile(tree, path.Join("boot", name)) {
			continue
		}
		k := kernel{Version: version, Image: "/boot/" + name}
		for _, initrd := range []string{"initrd.img-" + version, "initramfs-" + version + ".img", "initrd-" + version} {
			if isFile(tree, path.Join("boot", initrd)) {
				k.Initrd = "/boot/" + initrd
				break
			}
		}
		better := (k.Initrd != "") == (best.Initrd != "") && compareVersions(k.Version, best.Version) > 0
		if best.Image == "" || k.Initrd != "" && best.Initrd == "" || better {
			best = k
		}
	}
	return best, nil
}

// compareVersions orders versions by their numbers.
func compareVersions(a, b string) int {
	digits := func(s string) (int, string) {
		i := 0
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		n, _ := strconv.Atoi(s[:i])
		return n, s[i:]
	}
	for a != "" && b != "" {
		na, ra := digits(a)
		nb, rb := digits(b)
		if len(ra) < len(a) && len(rb) < len(b) {
			if na != nb {
				return na - nb
			}
			a, b = ra, rb
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}
