package container

import (
	"slices"
	"strings"
	"testing"

	"polder/api"
)

const (
	passwdText = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv:/bin/sh\nodd:x:70000:1::/:\nlow:x:5:6:::\n7:x:8:9::/seven:\n"
	groupText  = "root:x:0:\nweb:x:102:\nlogs:x:103:other,web\nadm:x:4:web\nlow:x:6:low\nbig:x:99999:web\n"
)

func rows(text string) [][]string {
	var all [][]string
	for line := range strings.Lines(text) {
		all = append(all, strings.Split(strings.TrimSuffix(line, "\n"), ":"))
	}
	return all
}

func TestFindUser(t *testing.T) {
	for _, c := range []struct {
		spec string
		want user
	}{
		{"", user{0, 0, nil, "/root"}},
		{"root", user{0, 0, nil, "/root"}},
		{"web", user{101, 102, []uint32{103, 4}, "/srv"}},
		{"101", user{101, 102, []uint32{103, 4}, "/srv"}},
		{"web:adm", user{101, 4, nil, "/srv"}},
		{"web:", user{101, 102, []uint32{103, 4}, "/srv"}},
		{":adm", user{0, 4, nil, "/root"}},
		{"1234", user{1234, 0, nil, "/"}},
		{"1234:5678", user{1234, 5678, nil, "/"}},
		{"low", user{5, 6, nil, "/"}}, // no home, and its own group is not told twice
		{"7", user{8, 9, nil, "/seven"}},
	} {
		got, err := findUser(rows(passwdText), rows(groupText), c.spec)
		if err != nil || got.uid != c.want.uid || got.gid != c.want.gid || got.home != c.want.home || !slices.Equal(got.groups, c.want.groups) {
			t.Errorf("%q: %+v, %v; want %+v", c.spec, got, err, c.want)
		}
	}
	for _, spec := range []string{"nobody", "web:nobody", "odd", "web:big", "65536", "-1", "1:99999999999"} {
		if got, err := findUser(rows(passwdText), rows(groupText), spec); api.KindOf(err) != api.Invalid {
			t.Errorf("%q: %+v, %v; want an invalid error", spec, got, err)
		}
	}
}

// Whatever a VE has in its files, a user found in them is one of its range, and no more groups than the kernel takes.
func FuzzFindUser(f *testing.F) {
	f.Add(passwdText, groupText, "web")
	f.Add("a:b:c:d:e:f:g\n:::::::\n", "x:x:x:x\n", "a:x")
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		dir := t.TempDir()
		mustWrite(t, dir, "etc/passwd", passwd)
		mustWrite(t, dir, "etc/group", group)
		root, err := openTree(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		u, err := lookupUser(root, spec)
		if err != nil {
			if api.KindOf(err) != api.Invalid {
				t.Fatalf("%v is no invalid error", err)
			}
			return
		}
		if u.uid > 65535 || u.gid > 65535 || len(u.groups) > groupLimit || !strings.HasPrefix(u.home, "/") {
			t.Fatalf("%+v", u)
		}
	})
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]int{"TERM": 15, "SIGTERM": 15, "sigint": 2, "9": 9, "SIGRTMIN+3": 37, "RTMAX-1": 63, "RTMIN": 34, "WINCH": 28} {
		if got, ok := parseSignal(text); !ok || int(got) != want {
			t.Errorf("%q: %d, %v; want %d", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "SIG", "0", "65", "NONE", "RTMIN+31", "RTMAX+1", "RTMIN+x", "-9"} {
		if got, ok := parseSignal(text); ok {
			t.Errorf("%q: %d", text, got)
		}
	}
}
