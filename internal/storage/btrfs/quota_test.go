package btrfs

import (
	"testing"
	"unsafe"

	"polder/api"
)

func TestIoctlSizes(t *testing.T) {
	for name, c := range map[string]struct{ got, request uintptr }{
		"vol_args_v2": {unsafe.Sizeof(volArgs{}), iocSnapCreate},
		"search_args": {unsafe.Sizeof(searchArgs{}), iocTreeSearch},
	} {
		if want := c.request >> 16 & 0x3fff; c.got != want {
			t.Errorf("%s has %d bytes, its ioctl says %d", name, c.got, want)
		}
	}
}

func TestParseDU(t *testing.T) {
	got, err := parseDU([]byte("     Total   Exclusive  Set shared  Filename\n  1048576       4096     1044480  /a b\n"))
	if err != nil || got != 4*api.KiB {
		t.Errorf("got %s, %v", got, err)
	}
	for _, bad := range []string{"", "Total\n", "1 x 2 /a\n"} {
		if _, err := parseDU([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
