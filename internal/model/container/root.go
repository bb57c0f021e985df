package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// mountRoot mounts the VE's volume so that its files, which belong to ids 0…65535, belong to the VE's own range, and
// returns where. No file is touched: the mount maps the ids. What an earlier call left mounted there is replaced.
//
// The mount is needed only until the container has copied it into its own mount namespace: unmountRoot takes it away
// then, so that a VE, running or not, costs the host no mount, and none can be left behind.
func mountRoot(ve model.Spec) (path string, err error) {
	if err := unmountRoot(ve); err != nil {
		return "", err
	}
	ids, err := userNamespace(ve.IDBase, ve.IDCount)
	if err != nil {
		return "", err
	}
	defer ids.Close()
	// Not at the volume's own path: the container's root user must be able to walk there, and the pool may be private.
	path = rootDir(ve)
	if ve.Root.Layers == nil {
		return path, mapped(ve.Root.Tree, path, ids)
	}
	if err := mountLayers(ve, path, ids); err != nil {
		return "", errors.Join(err, unmountRoot(ve))
	}
	return path, nil
}

// mountLayers mounts the overlay at target, over mapped mounts of its layers.
func mountLayers(ve model.Spec, target string, ids *os.File) error {
	layers := ve.Root.Layers
	both := filepath.Dir(layers.Upper)
	if both != filepath.Dir(layers.Work) {
		return api.Errorf(api.Invalid, "mount overlay: upper %s and work %s are not in one directory", layers.Upper, layers.Work)
	}
	lower, upper := lowerDir(ve), upperDir(ve)
	if err := mapped(layers.Lower, lower, ids); err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	// One mount for both: overlayfs wants upper and work on the same one.
	if err := mapped(both, upper, ids); err != nil {
		return err
	}
	// overlayfs works on its layers with the identity of who mounts it: root's own is not in the VE's range.
	err := asMounterOf(ve.IDBase, func() error {
		return overlay(target, lower, filepath.Join(upper, filepath.Base(layers.Upper)), filepath.Join(upper, filepath.Base(layers.Work)))
	})
	if err != nil {
		return fmt.Errorf("mount overlay at %s: %w", target, err)
	}
	// The overlay holds its layers itself.
	return errors.Join(unmount(lower), unmount(upper))
}

// unmountRoot takes away what mountRoot mounted in this mount namespace; the container keeps its own.
func unmountRoot(ve model.Spec) error {
	return errors.Join(unmount(rootDir(ve)), unmount(lowerDir(ve)), unmount(upperDir(ve)))
}

// unmount takes away all that is mounted at path; a path that is no mount, or not there, is no error.
func unmount(path string) error {
	for isMount(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return nil
}

func isMount(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MODE, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// mapped mounts source at target (a directory that is made when missing) with its ids mapped as in the namespace ids.
func mapped(source, target string, ids *os.File) error {
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	mount, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("open tree %s: %w", source, err)
	}
	defer unix.Close(mount)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ids.Fd())}
	if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &attr); errors.Is(err, unix.EINVAL) {
		return api.Errorf(api.Unsupported, "map ids of %s: its file system (%s) has no id-mapped mounts: keep the pool on btrfs, ext4 or xfs: %w", source, fsName(source), err)
	} else if err != nil {
		return fmt.Errorf("map ids of %s: %w", source, err)
	}
	return attach(mount, target)
}

// attach puts a detached mount at target, privately: taking it away again must not reach the container's copy.
func attach(mount int, target string) error {
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount at %s: %w", target, err)
	}
	private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &private); err != nil {
		_ = unix.Unmount(target, unix.MNT_DETACH)
		return fmt.Errorf("make mount %s private: %w", target, err)
	}
	return nil
}

// overlay mounts one at target. index is off: with it an upper directory does not survive being copied to another host.
func overlay(target, lower, upper, work string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	for _, option := range [][2]string{
		{"source", "polder"},
		{"lowerdir", strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(lower)},
		{"upperdir", upper},
		{"workdir", work},
		{"index", "off"},
	} {
		if err := unix.FsconfigSetString(fs, option[0], option[1]); err != nil {
			return fmt.Errorf("%s=%s: %w", option[0], option[1], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	return attach(mount, target)
}

// fsName is the name of the file system that a path is on, or its magic number.
func fsName(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "unknown"
	}
	names := map[int64]string{
		unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.TMPFS_MAGIC: "tmpfs", unix.NFS_SUPER_MAGIC: "nfs",
		unix.BTRFS_SUPER_MAGIC: "btrfs", unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.FUSE_SUPER_MAGIC: "fuse",
	}
	if name, ok := names[st.Type]; ok {
		return name
	}
	return fmt.Sprintf("%#x", st.Type)
}
