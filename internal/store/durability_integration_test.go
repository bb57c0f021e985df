//go:build integration

package store_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/store"
)

// writerDir makes the test binary write records to that store, and print each number after it was written.
const (
	writerDir = "POLDER_TEST_WRITER_DIR"
	// careless makes that writer not look at the free space.
	careless = "POLDER_TEST_WRITER_CARELESS"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		writeForever(dir)
	}
	if dir := os.Getenv(serverDir); dir != "" {
		serveEtcd(dir)
	}
	if options := os.Getenv(memberOptions); options != "" {
		serveMember(options)
	}
	os.Exit(m.Run())
}

type number struct {
	N       int
	Padding string
}

func writeForever(dir string) {
	ctx := context.Background()
	s, err := store.Open(ctx, store.Options{Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	padding := ""
	if os.Getenv(careless) != "" {
		store.SetFree(s, func() (api.Bytes, error) { return api.TiB, nil })
		padding = strings.Repeat("x", 256<<10)
	}
	table := store.NewTable[number](s, "n", 1)
	recs, err := table.List(ctx)
	for i := len(recs); err == nil; i++ {
		if _, err = table.Create(ctx, fmt.Sprintf("%06d", i), number{i, padding}); err == nil {
			fmt.Println(i)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestKilledWriterLosesNothing kills a process in the middle of its writes, time after time, and looks for every record
// whose write had returned.
func TestKilledWriterLosesNothing(t *testing.T) {
	dir := t.TempDir()
	last := -1
	for round := range 5 {
		last = max(last, writeAndKill(t, dir, 50+20*round))
		start := time.Now()
		s := open(t, dir)
		t.Logf("round %d: %d records, opened in %v", round, last+1, time.Since(start))
		wantNumbers(t, s, last)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func wantNumbers(t *testing.T, s *store.Store, last int) {
	recs, err := store.NewTable[number](s, "n", 1).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(recs) <= last {
		t.Fatalf("%d records are there, %d had been written", len(recs), last+1)
	}
	for i, rec := range recs {
		if rec.Value.N != i {
			t.Fatalf("record %d is %+v", i, rec)
		}
	}
}

// TestMemberThatMeetsFullDisk takes away the store's caution: etcd itself runs into the full disk. The process says why it can
// not go on, and nothing that was written is lost.
func TestMemberThatMeetsFullDisk(t *testing.T) {
	mount := smallFileSystem(t, "ext4")
	dir := filepath.Join(mount, "store")
	if err := open(t, dir).Close(); err != nil { // makes the reserve, which is part of the filling
		t.Fatal(err)
	}
	fill(t, filepath.Join(mount, "filler"), true)
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), writerDir+"="+dir, careless+"=1")
	var stderr strings.Builder
	child.Stderr = &stderr
	out, err := child.Output()
	if err == nil || !strings.Contains(stderr.String(), "store stopped: etcd: ") || !strings.Contains(stderr.String(), "no space left on device") {
		t.Fatalf("writer ended with %v: %s", err, stderr.String())
	}
	t.Logf("writer: %s", stderr.String())
	if err := os.Remove(filepath.Join(mount, "filler")); err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(out))
	if len(lines) == 0 {
		t.Fatal("nothing was written")
	}
	last, err := strconv.Atoi(lines[len(lines)-1])
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	wantNumbers(t, s, last)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// writeAndKill lets a child write about n records and kills it. It returns the last number that the child said was written.
func writeAndKill(t *testing.T, dir string, n int) (last int) {
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), writerDir+"="+dir)
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for i := 0; lines.Scan(); i++ {
		if last, err = strconv.Atoi(lines.Text()); err != nil {
			t.Fatal(err)
		}
		if i == n {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := child.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("writer ended with %v", err)
	}
	return last
}

// TestSecondProcessIsRefused holds the store open in another process.
func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close()
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), writerDir+"="+dir)
	out, err := child.CombinedOutput()
	if want := fmt.Sprintf("process %d has it open", os.Getpid()); err == nil || !strings.Contains(string(out), want) {
		t.Errorf("second process: %v, %s; want %q", err, out, want)
	}
}

// TestFileSystemFillsUp writes to a store whose file system others fill to the last byte.
func TestFileSystemFillsUp(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4", "btrfs"} {
		t.Run(kind, func(t *testing.T) { fillUp(t, smallFileSystem(t, kind)) })
	}
}

func fillUp(t *testing.T, mount string) {
	s := open(t, filepath.Join(mount, "store"))
	table := store.NewTable[string](s, "text", 1)
	for i := range 10 {
		if _, err := table.Create(t.Context(), fmt.Sprint("old", i), "old"); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, filepath.Join(mount, "filler"), false)
	_, err := table.Create(t.Context(), "new", "new")
	wantKind(t, err, api.Exhausted)
	// The refused write gave up the reserve: room to finish and to delete.
	if _, err := table.Put(t.Context(), "old0", "changed"); err != nil {
		t.Errorf("changing a record on a full disk: %v", err)
	}
	if _, err := table.Create(store.Freeing(t.Context()), "operation", "delete"); err != nil {
		t.Errorf("starting to delete on a full disk: %v", err)
	}
	if err := table.Delete(t.Context(), "old1"); err != nil {
		t.Errorf("deleting on a full disk: %v", err)
	}
	store.Commit(s)                                // what etcd still has to write, it would fail to write, and stop
	fill(t, filepath.Join(mount, "filler2"), true) // now the reserve's room is taken as well
	_, err = table.Put(t.Context(), "old0", "changed again")
	wantKind(t, err, api.Exhausted)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = store.Open(t.Context(), store.Options{Dir: filepath.Join(mount, "store")})
	wantKind(t, err, api.Exhausted)
	if err == nil || !strings.HasSuffix(err.Error(), "make room there and start again; nothing is lost") {
		t.Errorf("opening on a full disk: %v", err)
	}
	for _, name := range []string{"filler", "filler2"} {
		if err := os.Remove(filepath.Join(mount, name)); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, mount)
	s = open(t, filepath.Join(mount, "store"))
	table = store.NewTable[string](s, "text", 1)
	if rec, err := table.Get(t.Context(), "old0"); err != nil || rec.Value != "changed" {
		t.Errorf("record after the disk was full: %+v, %v", rec, err)
	}
	if _, err := table.Create(t.Context(), "new", "new"); err != nil {
		t.Errorf("after room was made: %v", err)
	}
	if recs, err := table.List(t.Context()); err != nil || len(recs) != 11 {
		t.Errorf("%d records at the end, %v", len(recs), err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	// A daemon that starts on a full disk has its reserve.
	fill(t, filepath.Join(mount, "filler"), true)
	s = open(t, filepath.Join(mount, "store"))
	table = store.NewTable[string](s, "text", 1)
	if _, err := table.Create(store.Freeing(t.Context()), "operation2", "delete"); err != nil {
		t.Errorf("starting to delete after a start on a full disk: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// smallFileSystem mounts a new file system of 320 MiB.
func smallFileSystem(t *testing.T, kind string) (mount string) {
	mount = t.TempDir()
	source, flags := "none", []string{"-t", kind, "-o", "size=320m"}
	if kind != "tmpfs" {
		source = filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(source, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(source, 320<<20); err != nil {
			t.Fatal(err)
		}
		run(t, "mkfs."+kind, "-q", source)
		flags = []string{"-t", kind, "-o", "loop"}
	}
	run(t, "mount", append(flags, source, mount)...)
	t.Cleanup(func() { run(t, "umount", mount) })
	return mount
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// fill writes a file until nothing is left; exact: to the last byte.
func fill(t *testing.T, path string, exact bool) {
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4 << 10, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !exact {
			break
		}
	}
	_ = f.Sync()
}

func flush(t *testing.T, mount string) {
	f, err := os.Open(mount)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
}
