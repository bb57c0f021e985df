package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
)

// An etcd member that meets a full disk dies. So the store looks at the free space before each write, and gives up in good
// order while there is still some:
//
//	below lowSpace    no new records, save for what frees space (see Freeing); the others can still be changed and deleted
//	below dangerSpace the reserve, a file that only takes up room, is deleted: that room is for finishing, undoing and
//	                  deleting
//	still below it    no writes at all
//
// One segment of the log and one growth of the database (16 MiB each) must fit into what is left, and a start needs two
// segments. ext4 counts up to 16 MiB as free that nobody gets.
const (
	lowSpace    = 128 * api.MiB
	reserveSize = 64 * api.MiB
	dangerSpace = 48 * api.MiB
)

// reserveEvery is how often the store tries to get its reserve back.
const reserveEvery = 10 * time.Second

// space watches over the file system that the embedded member is on.
type space struct {
	dir  string
	free func() (api.Bytes, error)

	mu       sync.Mutex // guards what follows
	reserved bool
	tried    time.Time // when the reserve was last made, or tried to
}

func newSpace(dir string) *space {
	s := &space{dir: dir}
	s.free = func() (api.Bytes, error) {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		blocks := st.Bavail
		if st.Type == unix.EXT4_SUPER_MAGIC && os.Geteuid() == 0 {
			blocks = st.Bfree // with what ext4 keeps for root
		}
		return api.Bytes(int64(blocks) * st.Bsize), err
	}
	return s
}

func (s *space) reservePath() string { return filepath.Join(s.dir, "reserve") }

type freeing struct{}

// Freeing marks a context: what is written under it helps to free space, such as an operation that deletes a VE, and may
// use the room that the store keeps back for that.
func Freeing(ctx context.Context) context.Context { return context.WithValue(ctx, freeing{}, true) }

func isFreeing(ctx context.Context) bool { return ctx.Value(freeing{}) != nil }

// admit says whether there is room for a write; creates: it makes new records. Errors are api.Exhausted.
func (s *space) admit(ctx context.Context, what string, creates bool) error {
	free, err := s.free()
	if err != nil {
		return nil // a file system that does not say how full it is
	}
	if free >= lowSpace+reserveSize {
		s.reserve(time.Now())
		return nil
	}
	if free < dangerSpace && s.release() {
		if free, err = s.free(); err != nil {
			return nil
		}
	}
	if free >= lowSpace || free >= dangerSpace && (isFreeing(ctx) || !creates) {
		return nil
	}
	return api.Errorf(api.Exhausted, "%s: only %v is free on the file system of %s, which keeps the last %v for finishing and deleting: delete VEs or images that are no longer needed, or make room there otherwise",
		what, free, s.dir, lowSpace)
}

// admitStart says whether there is room to start a member, with what the reserve has if need be; made: it is a new one.
func (s *space) admitStart(dir string, made bool) error {
	if made {
		return s.admit(context.Background(), fmt.Sprintf("make store %q", dir), true)
	}
	free, err := s.free()
	if err == nil && free < dangerSpace && s.release() {
		free, err = s.free()
	}
	if err == nil && free < dangerSpace {
		return api.Errorf(api.Exhausted, "open store %q: only %v is free on its file system, want %v: make room there and start again; nothing is lost", dir, free, dangerSpace)
	}
	return nil
}

// reserve makes the file that can be deleted when space runs out.
func (s *space) reserve(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reserved || now.Sub(s.tried) < reserveEvery {
		return
	}
	s.tried = now
	f, err := os.OpenFile(s.reservePath(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	// A file system that can not allocate has no reserve; then the store only stops sooner.
	s.reserved = unix.Fallocate(int(f.Fd()), 0, 0, int64(reserveSize)) == nil
}

// release deletes the reserve and waits until its room is free; false when there was none.
func (s *space) release() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved = false
	s.tried = time.Now()
	if os.Remove(s.reservePath()) != nil {
		return false
	}
	if dir, err := os.Open(s.dir); err == nil {
		defer dir.Close()
		_ = unix.Syncfs(int(dir.Fd())) // btrfs gives room back only then
	}
	return true
}
