package container

import (
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"polder/api"
)

// user is who a process in a VE runs as.
type user struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// userFileLimit is how much of a VE's passwd or group file is looked at; it is the VE's, so it may be anything.
const userFileLimit = 1 << 20

// lookupUser resolves "user[:group]", names or numbers, by the tree's own passwd and group files. Empty is root. A number
// need not be listed; a name that is not is api.Invalid.
func lookupUser(t tree, spec string) (user, error) {
	passwd, err := lines(t, "/etc/passwd")
	if err != nil {
		return user{}, err
	}
	groups, err := lines(t, "/etc/group")
	if err != nil {
		return user{}, err
	}
	return findUser(passwd, groups, spec)
}

// lines of a passwd or group file, split at colons; a missing file has none.
func lines(t tree, name string) ([][]string, error) {
	content, err := t.read(name, userFileLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all [][]string
	for line := range strings.Lines(string(content)) {
		if fields := strings.Split(strings.TrimSuffix(line, "\n"), ":"); len(fields) >= 4 {
			all = append(all, fields)
		}
	}
	return all, nil
}

func findUser(passwd, groups [][]string, spec string) (user, error) {
	name, group, withGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	u := user{home: "/"}
	row := slices.IndexFunc(passwd, func(f []string) bool { return len(f) >= 7 && f[0] == name })
	if number, err := id(name); err == nil && row < 0 {
		u.uid = number
		row = slices.IndexFunc(passwd, func(f []string) bool { return len(f) >= 7 && f[2] == name })
	} else if row < 0 {
		return user{}, api.Errorf(api.Invalid, "user %q is not in the VE's /etc/passwd", name)
	}
	if row >= 0 {
		fields := passwd[row]
		uid, err1 := id(fields[2])
		gid, err2 := id(fields[3])
		if err := errors.Join(err1, err2); err != nil {
			return user{}, api.Errorf(api.Invalid, "user %q in the VE's /etc/passwd: %w", name, err)
		}
		u.uid, u.gid = uid, gid
		if strings.HasPrefix(fields[5], "/") {
			u.home = fields[5]
		}
	}
	if withGroup && group != "" {
		gid, err := findGroup(groups, group)
		if err != nil {
			return user{}, err
		}
		u.gid = gid
		return u, nil // an explicit group is the only one
	}
	if row >= 0 {
		u.groups = memberships(groups, passwd[row][0], u.gid)
	}
	return u, nil
}

func findGroup(groups [][]string, name string) (uint32, error) {
	for _, fields := range groups {
		if fields[0] == name {
			gid, err := id(fields[2])
			if err != nil {
				return 0, api.Errorf(api.Invalid, "group %q in the VE's /etc/group: %w", name, err)
			}
			return gid, nil
		}
	}
	gid, err := id(name)
	if err != nil {
		return 0, api.Errorf(api.Invalid, "group %q is not in the VE's /etc/group", name)
	}
	return gid, nil
}

// groupLimit is the kernel's NGROUPS_MAX of old; no sane user is in more groups.
const groupLimit = 32

func memberships(groups [][]string, name string, primary uint32) []uint32 {
	var gids []uint32
	for _, fields := range groups {
		gid, err := id(fields[2])
		if err == nil && gid != primary && slices.Contains(strings.Split(fields[3], ","), name) && len(gids) < groupLimit {
			gids = append(gids, gid)
		}
	}
	return gids
}

// id reads a user or group id. Those above 65535 are not in a VE's range; crun would fail on them with a riddle.
func id(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, api.Errorf(api.Invalid, "id %q: want a number from 0 to 65535", s)
	}
	return uint32(n), nil
}
