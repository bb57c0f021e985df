package image

import (
	"strings"

	"polder/api"
)

// suite is a release of a distribution that can be built.
type suite struct {
	Distribution, Release, Code string
	Mirror, Security            string   // Security "": none of its own
	Components                  string   // of the archive
	Keyring, KeyringPackage     string   // the archive's keys on this host, and the package that has them
	Kernel                      string   // package
	Packages                    []string // beyond those of every suite
}

func (s suite) name() string { return s.Distribution + "/" + s.Release }

var debianReleases = []struct{ release, code string }{
	{"11", "bullseye"}, {"12", "bookworm"}, {"13", "trixie"}, {"sid", "sid"},
}

var ubuntuReleases = []struct{ release, code string }{
	{"22.04", "jammy"}, {"24.04", "noble"},
}

// parseSuite reads DISTRIBUTION/RELEASE, the release by number or code name.
func parseSuite(source string) (suite, error) {
	distribution, release, _ := strings.Cut(source, "/")
	switch distribution {
	case "debian":
		for _, r := range debianReleases {
			if release == r.release || release == r.code {
				return debianSuite(r.release, r.code), nil
			}
		}
	case "ubuntu":
		for _, r := range ubuntuReleases {
			if release == r.release || release == r.code {
				return ubuntuSuite(r.release, r.code), nil
			}
		}
	}
	return suite{}, api.Errorf(api.Invalid, "build image %q: unknown source; known: %s", source, strings.Join(knownSuites(), ", "))
}

func knownSuites() []string {
	var names []string
	for _, r := range debianReleases {
		names = append(names, "debian/"+r.release)
	}
	for _, r := range ubuntuReleases {
		names = append(names, "ubuntu/"+r.release)
	}
	return names
}

func debianSuite(release, code string) suite {
	s := suite{
		Distribution: "debian", Release: release, Code: code,
		Mirror: "http://deb.debian.org/debian", Security: "http://security.debian.org/debian-security", Components: "main",
		Keyring: "/usr/share/keyrings/debian-archive-keyring.gpg", KeyringPackage: "debian-archive-keyring",
		Kernel: "linux-image-cloud-amd64",
	}
	if release == "sid" {
		s.Security = ""
	}
	if release != "11" { // there it is part of systemd
		s.Packages = append(s.Packages, "systemd-resolved")
	}
	return s
}

func ubuntuSuite(release, code string) suite {
	s := suite{
		Distribution: "ubuntu", Release: release, Code: code,
		Mirror: "http://archive.ubuntu.com/ubuntu", Security: "http://security.ubuntu.com/ubuntu", Components: "main universe",
		Keyring: "/usr/share/keyrings/ubuntu-archive-keyring.gpg", KeyringPackage: "ubuntu-archive-keyring",
		Kernel: "linux-image-virtual",
	}
	if release != "22.04" {
		s.Packages = append(s.Packages, "systemd-resolved")
	}
	return s
}

// sources are the apt sources of the suite: as the distribution's installer would write them, or, with a mirror of the
// caller's, that mirror alone.
func (s suite) sources(mirror string) []string {
	line := func(url, dist string) string {
		return "deb [signed-by=" + s.Keyring + "] " + url + " " + dist + " " + s.Components
	}
	if mirror != "" {
		return []string{line(mirror, s.Code)}
	}
	lines := []string{line(s.Mirror, s.Code)}
	if s.Security != "" {
		lines = append(lines, line(s.Mirror, s.Code+"-updates"), line(s.Security, s.Code+"-security"))
	}
	return lines
}

// packages are what an image is made of: enough to boot, to be reached and to be administered.
func (s suite) packages(cloudInit bool, more []string) []string {
	list := []string{
		"systemd", "systemd-sysv", "libpam-systemd", "dbus", "udev", "kmod", "initramfs-tools", "busybox", "zstd", s.Kernel,
		"e2fsprogs", "fdisk", "openssh-server", "qemu-guest-agent", "iproute2", "iputils-ping", "netbase", "ca-certificates",
		"libnss-myhostname", "login", "passwd", "mount", "adduser", "procps", "less",
	}
	list = append(list, s.Packages...)
	if cloudInit {
		list = append(list, "cloud-init", "cloud-guest-utils", "sudo")
	}
	return append(list, more...)
}
