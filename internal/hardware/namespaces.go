package hardware

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"polder/api"
)

// probeUserNamespaces makes a user namespace, and with it an idmapped mount of dir that is attached nowhere.
func probeUserNamespaces(ctx context.Context, dir string) []api.Capability {
	users := api.Capability{Name: "user-namespaces", Level: api.OK, Detail: "containers are unprivileged"}
	idmap := api.Capability{Name: "idmapped-mounts", Level: api.OK}
	namespace, end, err := userNamespace(ctx)
	if err != nil {
		users.Level, users.Detail = api.Missing, fmt.Sprintf("cannot make one: %v", err)
		users.Remedy = userNamespaceRemedy()
		idmap.Level, idmap.Detail, idmap.Remedy = api.Missing, "they need user namespaces", users.Remedy
		return []api.Capability{users, idmap}
	}
	defer end()
	kind := fileSystemName(dir)
	switch err := idmappedMount(dir, namespace); {
	case err == nil:
		idmap.Detail = fmt.Sprintf("work on %s (%s)", dir, kind)
	case errors.Is(err, unix.EPERM):
		idmap.Level, idmap.Detail, idmap.Remedy = api.Limited, "cannot be tried without root", "sudo polder doctor"
	case errors.Is(err, unix.ENOSYS):
		idmap.Level, idmap.Detail, idmap.Remedy = api.Missing, "the kernel has none: they need Linux 5.12", "boot a newer kernel: Debian 12's or 13's"
	default:
		idmap.Level = api.Missing
		idmap.Detail = fmt.Sprintf("do not work on %s (%s): %v", dir, kind, err)
		idmap.Remedy = "keep Polder's data on btrfs, ext4 or xfs: polder serve --data DIR"
	}
	return []api.Capability{users, idmap}
}

func userNamespaceRemedy() string {
	for file, remedy := range map[string]string{
		"/proc/sys/user/max_user_namespaces":         "sysctl -w user.max_user_namespaces=100000",
		"/proc/sys/kernel/unprivileged_userns_clone": "sysctl -w kernel.unprivileged_userns_clone=1",
	} {
		if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == "0" {
			return remedy
		}
	}
	return "sudo polder doctor, or boot a kernel with CONFIG_USER_NS (Debian's has)"
}

// userNamespace opens a user namespace that a process waiting for its input lives in, until end is called.
func userNamespace(ctx context.Context) (namespace *os.File, end func(), err error) {
	cat, err := exec.LookPath("cat")
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, cat)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	cmd.Stdout = io.Discard
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	namespace, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	end = func() {
		if namespace != nil {
			namespace.Close()
		}
		stdin.Close()
		_ = cmd.Wait()
	}
	if err != nil {
		end()
		return nil, nil, err
	}
	return namespace, end, nil
}

func idmappedMount(dir string, namespace *os.File) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree) // the mount goes with it
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(namespace.Fd())}
	return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
}

func probeSeccomp(context.Context) []api.Capability {
	c := api.Capability{Name: "seccomp", Level: api.OK, Detail: "filters with errno"}
	text, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil || !strings.Contains(" "+string(text), " errno ") {
		c.Level, c.Detail = api.Missing, "the kernel has no seccomp filters"
		c.Remedy = "boot a kernel with CONFIG_SECCOMP_FILTER (Debian's has)"
	}
	return []api.Capability{c}
}
