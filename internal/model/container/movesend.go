package container

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"

	"polder/api"
	"polder/internal/criu"
	"polder/internal/model"
)

// moveStream is the name of the one stream of a container's move.
const moveStream = "container"

// Send freezes the VE by its control group, shuts its gates, and sends its images while CRIU writes them. The freezer, not CRIU,
// makes the VE stand still: that lasts, whoever dies.
func (m *Model) Send(ctx context.Context, ve model.Spec, s model.Session, o model.SendOptions) (model.Sent, error) {
	sent, err := m.send(ctx, ve, s, o)
	if err != nil {
		return sent, api.Errorf(kindOf(ctx, err), "send container %q: %w", ve.Name, err)
	}
	return sent, nil
}

func (m *Model) send(ctx context.Context, ve model.Spec, s model.Session, o model.SendOptions) (sent model.Sent, err error) {
	w, ok := m.running(ve)
	if !ok {
		return sent, api.Errorf(api.Precondition, "ve is not running: start it first")
	}
	defer w.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.Stream(ctx, moveStream)
	if err != nil {
		return sent, err
	}
	defer stream.Close()
	// Whatever waits for the other end must not outlive ctx.
	unhook := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	defer unhook()

	out, in := &frameWriter{w: stream}, &frameReader{r: stream}
	record, moving := readMove(ve)
	if !moving {
		record = moveRecord{Paused: cgroupOf(ve).frozen()}
	}
	if err := out.message(offer{Version: moveVersion, ID: ve.ID, IDBase: ve.IDBase, IDCount: ve.IDCount, Cgroup: ve.Cgroup, System: ve.App == nil, Paused: record.Paused}); err != nil {
		return sent, err
	}
	d := dump{m: m, ve: ve, pid: w.PID, out: out, options: o, memory: newMemory(out)}
	if err := d.prepare(); err != nil {
		return sent, err
	}
	closed := sync.OnceValue(d.close)
	defer func() { err = errors.Join(err, closed()) }()
	var ready answer
	if err := errors.Join(in.message(&ready), ready.err()); err != nil {
		return sent, err
	}
	if err := writeMove(ve, record); err != nil {
		return sent, err
	}
	sent.Way = "dump, streamed"
	if o.Mode == api.Live {
		if sent.Way, err = d.ahead(ctx); err != nil {
			return sent, err
		}
	}
	sent.Still = time.Now()
	if err := standStill(ctx, ve); err != nil {
		return sent, err
	}
	slog.DebugContext(ctx, "container stands still", "ve", ve.Name, "after", time.Since(sent.Still))
	// Both read what no longer changes.
	var files sync.WaitGroup
	var still error
	files.Go(func() {
		if still = o.Still(ctx); still != nil {
			cancel()
		}
	})
	err = d.run(ctx)
	files.Wait()
	if err = errors.Join(still, err); err != nil {
		_ = out.message(ending{Failed: err.Error()})
		return sent, err
	}
	if err := out.message(ending{}); err != nil {
		return sent, err
	}
	slog.DebugContext(ctx, "container dumped and sent", "ve", ve.Name, "after", time.Since(sent.Still), "bytes", out.bytes.Load())
	go closed() // while the other end is at it
	var restored answer
	if err := errors.Join(in.message(&restored), restored.err()); err != nil {
		return sent, err
	}
	slog.DebugContext(ctx, "container is there", "ve", ve.Name, "after", time.Since(sent.Still))
	if !cgroupOf(ve).frozen() {
		return sent, api.Errorf(api.Internal, "it does not stand still after the dump")
	}
	sent.Bytes = api.Bytes(out.bytes.Load())
	return sent, nil
}

func gates(ctx context.Context, ve model.Spec, open bool) error {
	for _, nic := range ve.NICs {
		if err := ve.Plug.Gate(ctx, nic, open); err != nil {
			return err
		}
	}
	return nil
}

// dump is CRIU's half of a Send.
type dump struct {
	m       *Model
	ve      model.Spec
	pid     int
	out     *frameWriter
	options model.SendOptions
	memory  *memory

	dir      string
	iptables bool
	sysctls  map[string]string
	process  *criu.Process
	pages    *os.File // where the process has its pages served
}

// defaultDowntime is what SendOptions say.
const defaultDowntime = 300 * time.Millisecond

// pagesFD is the descriptor of that in criu.
const pagesFD = int32(criu.FirstFile)

// prepare does, while the VE runs, all that can be done then.
func (d *dump) prepare() error {
	var err error
	if d.dir, err = mountImages(d.ve); err != nil {
		return err
	}
	group, err := openMover(d.ve)
	if err != nil {
		return errors.Join(err, unmountImages(d.ve))
	}
	defer group.Close()
	d.iptables = usesIptables(d.pid)
	d.sysctls, err = sysctlsOf(d.pid)
	var path string
	if err == nil {
		path, err = findTools(d.iptables)
	}
	if err == nil {
		err = d.start(group, path)
	}
	if err != nil {
		return errors.Join(err, unmountImages(d.ve))
	}
	return nil
}

func (d *dump) start(group *os.File, path string) error {
	ours, theirs, err := criu.PageSocket()
	if err != nil {
		return err
	}
	defer theirs.Close()
	if d.process, err = criu.Start(criu.Options{Cgroup: group, Path: path, Files: []*os.File{theirs}}); err != nil {
		return errors.Join(err, ours.Close())
	}
	d.pages = ours
	return nil
}

// ahead copies what can be copied while the VE runs, and says how.
func (d *dump) ahead(ctx context.Context) (way string, err error) {
	begun := time.Now()
	// The half of it is for what comes before and after.
	if way, err = d.memory.ahead(ctx, d.ve, cmp.Or(d.options.MaxDowntime, defaultDowntime)/2, d.progress); err != nil {
		return "", err
	}
	slog.DebugContext(ctx, "memory was copied ahead", "ve", d.ve.Name, "way", way, "took", time.Since(begun), "bytes", d.memory.sent)
	if d.options.Ahead != nil {
		err = d.options.Ahead(ctx)
	}
	return way, err
}

func (d *dump) close() error {
	undo, cancel := context.WithTimeout(context.Background(), undoLimit)
	defer cancel()
	_ = d.pages.Close()
	err := d.process.Close()
	return errors.Join(err, moverOf(d.ve).destroy(undo), unmountImages(d.ve))
}

// run dumps and sends, up to the ending.
func (d *dump) run(ctx context.Context) error {
	logs, err := openLogs(d.ve)
	if err != nil {
		return err
	}
	o := commonOptions(d.dir, "dump.log")
	pid, yes, freezer, seconds := int32(d.pid), true, string(cgroupOf(d.ve)), uint32(seizeLimit)
	o.Timeout = &seconds
	o.Pid, o.LeaveRunning, o.FreezeCgroup = &pid, &yes, &freezer // "running" is what the freezer makes of it
	o.IrmapScanPaths = irmapPaths()
	o.External = append(o.External, logs...)
	fd := pagesFD
	o.Ps = &rpc.CriuPageServerInfo{Fd: &fd}
	if err := d.memory.stands(d.ve); err != nil {
		return err
	}
	var dumped, served error
	var both sync.WaitGroup
	begun, before := time.Now(), d.memory.sent
	both.Go(func() {
		dumped = d.process.Dump(ctx, o, nil)
		if dumped != nil {
			_ = d.pages.Close() // nobody sends pages any more
		}
		slog.DebugContext(ctx, "container dumped", "ve", d.ve.Name, "took", time.Since(begun))
	})
	both.Go(func() {
		if served = errors.Join(criu.ServePages(d.pages, d.memory), d.memory.close()); served != nil {
			_ = d.pages.Close() // criu fails then
		}
		slog.DebugContext(ctx, "rest of the memory sent", "ve", d.ve.Name, "took", time.Since(begun), "bytes", d.memory.sent-before)
	})
	err = d.stand(logs)
	both.Wait()
	if dumped != nil {
		d.keepLog()
		if errors.Is(served, os.ErrClosed) || errors.Is(served, io.EOF) || errors.Is(served, io.ErrUnexpectedEOF) {
			served = nil // it is what came of that; anything else came first
		}
	}
	if err = errors.Join(err, served, dumped); err != nil {
		return err
	}
	return sendImages(d.dir, d.out, func(name string) bool { return carriedElsewhere(name, d.iptables) })
}

// stand says what goes with the images.
func (d *dump) stand(logs []string) error {
	s, err := d.standing(logs)
	if err != nil {
		return err
	}
	return d.out.message(s)
}

// keepLog saves CRIU's log of a dump that failed next to the VE, for whoever looks into it.
func (d *dump) keepLog() { keepLog(d.ve, d.dir, "dump.log") }

func keepLog(ve model.Spec, dir, name string) {
	if log, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
		_ = os.WriteFile(filepath.Join(bundleDir(ve), name), log, 0o600)
	}
}

func (d *dump) progress(done int64) {
	if d.options.Progress != nil {
		d.options.Progress(done, 0, "bytes")
	}
}

func (d *dump) standing(logs []string) (standing, error) {
	s := standing{Logs: logs, Iptables: d.iptables}
	var err error
	if s.Groups, err = groupsOf(d.ve); err != nil {
		return s, err
	}
	if s.Log, err = logEnd(d.ve); err != nil {
		return s, err
	}
	s.Iptables, s.Sysctls, s.Watched = d.iptables, d.sysctls, watchedLinks(d.pid)
	if s.Net, err = netConfigOf(d.pid); err != nil {
		return s, err
	}
	if s.Neighbours, err = neighboursOf(d.pid); err != nil {
		return s, err
	}
	if s.Config, err = os.ReadFile(filepath.Join(bundleDir(d.ve), "config.json")); err != nil {
		return s, err
	}
	s.Runtime, err = d.m.runtime.Kept(d.ve.ID)
	return s, err
}

// seizeLimit is how many seconds criu may take to lay hands on all processes, which stand still already.
const seizeLimit = 3

// logCarried is how much of the console log goes along, from its end.
const logCarried = 128 << 10

func logEnd(ve model.Spec) ([]byte, error) {
	log, err := os.Open(ve.LogPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer log.Close()
	info, err := log.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, info.Size()-logCarried)
	return io.ReadAll(io.NewSectionReader(log, from, logCarried))
}

// commonOptions are those of a dump and of its restore.
func commonOptions(dir, log string) *rpc.CriuOpts {
	yes, level, none := true, int32(logLevel), int32(-1)
	ghosts := uint32(ghostLimit)
	return &rpc.CriuOpts{
		ImagesDirFd: &none, ImagesDir: &dir, LogFile: &log, LogLevel: &level,
		TcpEstablished: &yes, TcpSkipInFlight: &yes, // who is just connecting tries again
		FileLocks: &yes, ExtUnixSk: &yes,
		NetworkLock: rpc.CriuNetworkLockMethod_NFTABLES.Enum(),
		AutoExtMnt:  &yes, ExtSharing: &yes, ExtMasters: &yes,
		ManageCgroupsMode: rpc.CriuCgMode_IGNORE.Enum(),
		GhostLimit:        &ghosts,
	}
}

// logLevel has criu log what goes wrong, and no more: its log takes longer than its work.
const logLevel = 2

// ghostLimit is up to which size a file that is open but deleted goes along.
const ghostLimit = 64 << 20

// irmapPaths are where a system's services watch for changes, besides the places that CRIU knows: by inode numbers alone, which
// is what the kernel tells of a watch, its file can't be found on another host.
func irmapPaths() []string {
	return []string{"/usr/share/dbus-1", "/etc/systemd", "/usr/share/zoneinfo"}
}

// openLogs are CRIU's names of the VE's open files that are its console log, which lies outside.
func openLogs(ve model.Spec) ([]string, error) {
	seen := map[string]bool{}
	var names []string
	for _, path := range []string{ve.LogPath(), oldLog(ve)} {
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		found, err := openFiles(ve, info)
		if err != nil {
			return nil, err
		}
		for _, name := range found {
			if !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names, nil
}
