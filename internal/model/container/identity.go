package container

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// writeIdentity writes into the VE's tree what makes it this VE and no other: name, addresses, resolver, machine id, and
// cloud-init's data. It is done at every start, before the network is there.
func writeIdentity(ve model.Spec, root string) error {
	t, err := openTree(root)
	if err != nil {
		return err
	}
	defer t.Close()
	return asRootOf(ve.IDBase, func() error {
		if err := forgetOther(ve, t); err != nil {
			return identityError(err)
		}
		for _, file := range identity(ve) {
			if err := t.write(file.name, []byte(file.content), file.mode); err != nil {
				return identityError(err)
			}
		}
		return nil
	})
}

// forgetOther removes the identity of the VE that the tree was copied from, if it was.
func forgetOther(ve model.Spec, t tree) error {
	const longest = 64
	id, err := t.read(model.MachineIDFile, longest)
	if own := strings.TrimSpace(string(id)); err != nil || own == "" || own == "uninitialized" || own == machineID(ve) {
		return nil //nolint:nilerr // it has none
	}
	for _, name := range model.Identity() {
		if err := t.remove(name); err != nil {
			return err
		}
	}
	return nil
}

func machineID(ve model.Spec) string { return strings.ReplaceAll(ve.ID, "-", "") }

// identityError is nobody's defect: the disk is full, or what the VE or its image has in the way is its own doing.
func identityError(err error) error {
	kind := api.Precondition
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		kind = api.Exhausted
	}
	return api.Errorf(kind, "write its identity into its root: %w", err)
}

type identityFile struct {
	name, content string
	mode          uint32
}

func identity(ve model.Spec) []identityFile {
	files := []identityFile{
		{"/etc/hostname", ve.Name + "\n", 0o644},
		{"/etc/hosts", hosts(ve), 0o644},
	}
	if resolver := resolvConf(ve); resolver != "" {
		files = append(files, identityFile{"/etc/resolv.conf", resolver, 0o644})
	}
	if ve.App != nil {
		return files
	}
	files = append(files,
		identityFile{model.MachineIDFile, machineID(ve) + "\n", 0o444},
		// A service's pressure watch is a bind mount and a kernel trigger that a live move cannot carry.
		identityFile{"/run/systemd/system.conf.d/50-polder.conf", "[Manager]\nDefaultMemoryPressureWatch=off\n", 0o644},
		// Users' own systemd, which would watch its cgroup's pressure in spite of that, and spin after a live move.
		identityFile{"/run/systemd/system/user@.service.d/50-polder.conf", "[Service]\nMemoryPressureWatch=off\n", 0o644},
		// A service's own user namespace can't be carried; a unit that is to have one all the same says so in a drop-in of its own.
		identityFile{"/run/systemd/system/service.d/50-polder.conf", "[Service]\nPrivateUsers=no\n", 0o644},
		// From outside a reboot looks like a halt (see exitOf), unless PID 1 says it by its exit status.
		identityFile{"/run/systemd/system/systemd-reboot.service.d/50-polder.conf", fmt.Sprintf("[Unit]\nSuccessAction=exit-force\nSuccessActionExitStatus=%d\n", exitReboot), 0o644},
	)
	if ve.CloudInit.UserData != "" {
		const seed = "/var/lib/cloud/seed/nocloud/"
		files = append(files,
			identityFile{seed + "user-data", ve.CloudInit.UserData, 0o600},
			identityFile{seed + "meta-data", ve.CloudInit.MetaData, 0o600})
		if ve.CloudInit.NetworkConfig != "" {
			files = append(files, identityFile{seed + "network-config", ve.CloudInit.NetworkConfig, 0o600})
		}
	}
	return files
}

func hosts(ve model.Spec) string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n")
	own := 0
	for _, nic := range ve.NICs {
		for _, address := range nic.Addresses {
			fmt.Fprintf(&b, "%s %s\n", address.Addr(), qualified(ve.Name, nic.Domain))
			own++
		}
	}
	if own == 0 {
		fmt.Fprintf(&b, "127.0.1.1 %s\n", ve.Name)
	}
	return b.String()
}

func qualified(name, domain string) string {
	if domain == "" {
		return name
	}
	return name + "." + domain + " " + name
}

// resolvConf is empty when no network has a resolver: then what the image brought along stays.
func resolvConf(ve model.Spec) string {
	var servers, search strings.Builder
	for _, nic := range ve.NICs {
		for _, address := range nic.DNS {
			fmt.Fprintf(&servers, "nameserver %s\n", address)
		}
		if nic.Domain != "" {
			search.WriteString(" " + nic.Domain)
		}
	}
	if servers.Len() == 0 || search.Len() == 0 {
		return servers.String()
	}
	return "search" + search.String() + "\n" + servers.String()
}

// checkSpec refuses what can't be run as a container.
func checkSpec(ve model.Spec) error {
	if ve.Root.Tree == "" {
		return errors.New("the volume is not a tree")
	}
	return checkOwn(ve)
}

// checkOwn refuses what would not be safe to write into files line by line, or to map. The volume may be on its way.
func checkOwn(ve model.Spec) error {
	switch {
	case strings.ContainsAny(ve.Name, "\n \t/") || ve.Name == "":
		return fmt.Errorf("the name %q is no host name", ve.Name)
	case ve.IDBase == 0 || ve.IDCount == 0:
		return errors.New("it has no id range of its own")
	case ve.Cgroup == "" || ve.Cgroup == "/":
		return errors.New("it has no cgroup of its own")
	}
	return nil
}
