package vm

import (
	"cmp"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
)

// QEMU asks the kernel to be told of pages that are touched before they have come: by a device that is root's, or by a system call
// that is too, unless a sysctl opens it to all. So the VE's user is let open the device, for as long as its memory follows.
const (
	faultDevice = "/dev/userfaultfd"
	faultSwitch = "/proc/sys/vm/unprivileged_userfaultfd"
	accessList  = "system.posix_acl_access"
)

// CanFollow implements model.Follower.
func (m *Model) CanFollow() error {
	if faultsForAll() {
		return nil
	}
	if _, err := os.Stat(faultSwitch); err != nil {
		return api.Errorf(api.Unsupported, "its kernel has no userfaultfd")
	}
	if err := unix.Access(faultDevice, unix.R_OK|unix.W_OK); err != nil {
		return api.Errorf(api.Unsupported, "%s: %w; sysctl vm.unprivileged_userfaultfd=1 would do", faultDevice, err)
	}
	return nil
}

// faultsForAll says whether anybody may use userfaultfd here.
func faultsForAll() bool {
	text, err := os.ReadFile(faultSwitch)
	return err == nil && strings.TrimSpace(string(text)) == "1"
}

// allowFaults lets a user open the device.
func (m *Model) allowFaults(id uint32) error {
	if faultsForAll() {
		return nil
	}
	return m.changeAccess(func(list []access) []access { return append(list, access{Tag: aclUser, Perm: 6, ID: id}) }, id)
}

// forbidFaults takes that back, if it was ever given.
func (m *Model) forbidFaults(id uint32) error {
	return m.changeAccess(func(list []access) []access { return list }, id)
}

// access is an entry of an access list, as the kernel has it in the attribute (include/uapi/linux/posix_acl_xattr.h).
type access struct {
	Tag, Perm uint16
	ID        uint32
}

const (
	aclVersion                                          = 2
	aclUserObj, aclUser, aclGroupObj, aclMask, aclOther = 0x01, 0x02, 0x04, 0x10, 0x20
	aclNobody                                           = 0xffffffff
)

// changeAccess changes the device's list, from which the user's own entry was taken.
func (m *Model) changeAccess(change func([]access) []access, id uint32) error {
	m.faults.Lock()
	defer m.faults.Unlock()
	before, err := readAccess()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTSUP) {
		return nil // CanFollow, and QEMU, say what is missing
	}
	if err != nil {
		return err
	}
	after := change(slices.DeleteFunc(slices.Clone(before), func(a access) bool { return a.Tag == aclUser && a.ID == id }))
	if slices.Equal(after, before) {
		return nil
	}
	return writeAccess(after)
}

// readAccess gives the device's list, without the mask.
func readAccess() (list []access, err error) {
	text := make([]byte, 64<<10)
	n, err := unix.Getxattr(faultDevice, accessList, text)
	if errors.Is(err, unix.ENODATA) { // then it is what the mode says
		info, err := os.Stat(faultDevice)
		if err != nil {
			return nil, err
		}
		mode := uint16(info.Mode().Perm())
		return []access{{aclUserObj, mode >> 6 & 7, aclNobody}, {aclGroupObj, mode >> 3 & 7, aclNobody}, {aclOther, mode & 7, aclNobody}}, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "getxattr", Path: faultDevice, Err: err}
	}
	for rest := text[min(4, n):n]; len(rest) >= 8; rest = rest[8:] {
		a := access{binary.LittleEndian.Uint16(rest), binary.LittleEndian.Uint16(rest[2:]), binary.LittleEndian.Uint32(rest[4:])}
		if a.Tag != aclMask {
			list = append(list, a)
		}
	}
	return list, nil
}

// writeAccess sets the device's list, with a mask where there are users in it. Without any the kernel makes it the mode.
func writeAccess(list []access) error {
	if len(list) > 3 {
		list = append(list, access{aclMask, 6, aclNobody})
	}
	slices.SortFunc(list, func(a, b access) int { return cmp.Or(cmp.Compare(a.Tag, b.Tag), cmp.Compare(a.ID, b.ID)) })
	text := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, a := range list {
		text = binary.LittleEndian.AppendUint16(text, a.Tag)
		text = binary.LittleEndian.AppendUint16(text, a.Perm)
		text = binary.LittleEndian.AppendUint32(text, a.ID)
	}
	if err := unix.Setxattr(faultDevice, accessList, text, 0); err != nil {
		return &fs.PathError{Op: "setxattr", Path: faultDevice, Err: err}
	}
	return nil
}
