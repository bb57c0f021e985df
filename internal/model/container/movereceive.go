package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"

	"polder/api"
	"polder/internal/criu"
	"polder/internal/model"
)

// Receive makes the VE of its images; it stands still in the freezer then, behind shut gates, without having run an
// instruction here.
func (m *Model) Receive(ctx context.Context, ve model.Spec, s model.Session, o model.ReceiveOptions) error {
	if err := m.receive(ctx, ve, s, o); err != nil {
		return api.Errorf(kindOf(ctx, err), "receive container %q: %w", ve.Name, err)
	}
	return nil
}

func (m *Model) receive(ctx context.Context, ve model.Spec, s model.Session, o model.ReceiveOptions) (err error) {
	if err := checkOwn(ve); err != nil {
		return api.Errorf(api.Invalid, "%w", err)
	}
	if w, ok := m.running(ve); ok {
		w.Close()
		return api.Errorf(api.Conflict, "it runs here already")
	}
	if m.traces(ve) {
		if err := m.tidy(ctx, ve); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.Stream(ctx, moveStream)
	if err != nil {
		return err
	}
	defer stream.Close()
	unhook := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	defer unhook()
	in, out := &frameReader{r: stream}, &frameWriter{w: stream}
	r := restore{m: m, ve: ve}
	if err := in.message(&r.offer); err != nil {
		return err
	}
	err = r.prepare(ctx)
	defer func() {
		if err == nil {
			go r.leave()
		} else {
			err = errors.Join(err, r.close())
		}
	}()
	if told := out.message(answerOf(err)); err != nil || told != nil {
		return errors.Join(err, told)
	}
	err = r.run(ctx, in, o)
	if err != nil && ctx.Err() == nil {
		// The source is told, so that it lets the VE go on at once.
		_ = out.message(answerOf(err))
		return err
	}
	return errors.Join(err, out.message(answer{}))
}

// restore is CRIU's half of a Receive.
type restore struct {
	m        *Model
	ve       model.Spec
	offer    offer
	standing standing

	dir     string
	images  *imageWriter
	limits  limits
	process *criu.Process
	logs    []*os.File
}

// prepare does what can be done before anything has come.
func (r *restore) prepare(ctx context.Context) error {
	have := offer{Version: moveVersion, ID: r.ve.ID, IDBase: r.ve.IDBase, IDCount: r.ve.IDCount, System: r.ve.App == nil}
	got := r.offer
	got.Cgroup, got.Paused = "", false // may be any
	if got != have {
		return api.Errorf(api.Invalid, "the source offers %+v, wanted is %+v", r.offer, have)
	}
	if err := unified(); err != nil {
		return err
	}
	var err error
	if r.limits, err = cgroupOf(r.ve).delegate(); err != nil {
		return err
	}
	if r.dir, err = mountImages(r.ve); err != nil {
		return err
	}
	r.images, err = newImageWriter(r.dir)
	return err
}

// leave lets go of a criu that has done its work. What else is left, for whoever takes the VE over, is Enter's.
func (r *restore) leave() {
	_ = r.process.Close()
	for _, log := range r.logs {
		_ = log.Close()
	}
}

// close takes back what was made for a VE that does not come.
func (r *restore) close() error {
	var failed error
	if r.process != nil {
		failed = r.process.Close()
	}
	for _, log := range r.logs {
		_ = log.Close()
	}
	undo, cancel := context.WithTimeout(context.Background(), undoLimit)
	defer cancel()
	return errors.Join(failed, moverOf(r.ve).destroy(undo), unmountRoot(r.ve), unmountImages(r.ve))
}

// run reads memory and images and makes the VE of them. While they come it makes ready for them.
func (r *restore) run(ctx context.Context, in *frameReader, o model.ReceiveOptions) error {
	defer r.images.memory.Close()
	if err := r.stood(in); err != nil {
		return err
	}
	begun := time.Now()
	waiting, giveUp := context.WithCancel(ctx)
	defer giveUp()
	made := make(chan error, 1)
	var root string
	go func() {
		var err error
		root, err = r.ready(waiting, o)
		slog.DebugContext(ctx, "ready for the images", "ve", r.ve.Name, "after", time.Since(begun))
		made <- err
	}()
	end, err := r.read(in)
	if err == nil {
		var ended ending
		err = errors.Join(decodeMessage(end, &ended), ended.err())
	}
	if err == nil {
		err = r.images.memory.Finish()
	}
	if err != nil {
		giveUp()
		<-made
		return err
	}
	slog.DebugContext(ctx, "images are here", "ve", r.ve.Name, "after", time.Since(begun))
	if err := <-made; err != nil {
		return err
	}
	if err := criu.MoveGroups(r.dir, r.offer.Cgroup, r.ve.Cgroup); err != nil {
		return err
	}
	if err := criu.MendExecutables(r.dir); err != nil {
		return err
	}
	if err := criu.MendWatches(r.dir, r.standing.Watched); err != nil {
		return err
	}
	if err := r.restore(ctx, root); err != nil {
		keepLog(r.ve, r.dir, "restore.log")
		return err
	}
	slog.DebugContext(ctx, "restored", "ve", r.ve.Name, "after", time.Since(begun))
	return nil
}

// stood reads up to what the source says once the VE stands still.
func (r *restore) stood(in *frameReader) error {
	message, err := r.read(in)
	if err != nil {
		return err
	}
	var end ending // of a source that could not even begin
	if err := errors.Join(decodeMessage(message, &end), decodeMessage(message, &r.standing)); err != nil {
		return err
	}
	return end.err()
}

// read takes what comes up to the next message.
func (r *restore) read(in *frameReader) (message []byte, err error) {
	for {
		f, err := in.next()
		if err != nil || f.kind == frameMessage {
			return f.data, err
		}
		if err := r.images.write(f); err != nil {
			return nil, err
		}
	}
}

// ready makes everything that the images do not decide, and says where the root is.
func (r *restore) ready(ctx context.Context, o model.ReceiveOptions) (root string, err error) {
	if err := makeGroups(r.ve, r.limits, r.standing.Groups); err != nil {
		return "", err
	}
	if err := r.start(); err != nil {
		return "", err
	}
	if r.ve.Root, err = o.Volume(ctx); err != nil {
		return "", err
	}
	if err := checkSpec(r.ve); err != nil {
		return "", api.Errorf(api.Invalid, "%w", err)
	}
	slog.DebugContext(ctx, "volume is here", "ve", r.ve.Name)
	return mountRoot(r.ve)
}

// start starts criu with the console log as many times as the VE has it open.
func (r *restore) start() error {
	group, err := openMover(r.ve)
	if err != nil {
		return err
	}
	defer group.Close()
	for range r.standing.Logs {
		log, err := openLog(r.ve)
		if err != nil {
			return err
		}
		r.logs = append(r.logs, log)
		// As crun gives it to the VE's root user, who is to open it again.
		if err := log.Chown(int(r.ve.IDBase), int(r.ve.IDBase)); err != nil {
			return err
		}
	}
	if err := r.continueLog(); err != nil {
		return err
	}
	path, err := findTools(r.standing.Iptables)
	if err == nil {
		r.process, err = criu.Start(criu.Options{Cgroup: group, Files: r.logs, Path: path})
	}
	return err
}

// continueLog begins the console log with what it was at the source.
func (r *restore) continueLog() error {
	log, err := openLog(r.ve)
	if err != nil {
		return err
	}
	defer log.Close()
	if info, err := log.Stat(); err != nil || info.Size() > 0 {
		return err
	}
	_, err = log.Write(r.standing.Log)
	return err
}

func (r *restore) restore(ctx context.Context, root string) error {
	o := commonOptions(r.dir, "restore.log")
	o.Root = &root
	o.ManageCgroupsMode = rpc.CriuCgMode_SOFT.Enum()
	for _, nic := range r.ve.NICs {
		o.External = append(o.External, fmt.Sprintf("veth[%s]:%s", nic.Name, nic.HostName))
	}
	for i, name := range r.standing.Logs {
		fd := int32(criu.FirstFile + i)
		o.InheritFd = append(o.InheritFd, &rpc.InheritFd{Key: &name, Fd: &fd})
	}
	var stilled error
	var first int
	_, err := r.process.Restore(ctx, o, func(action string, pid int) error {
		slog.DebugContext(ctx, "criu", "ve", r.ve.Name, "action", action)
		switch action {
		case "setup-namespaces":
			first = pid // told here only
		case "post-setup-namespaces":
			return r.plug(ctx, first)
		case "pre-resume": // criu goes on here whatever we say
			stilled = r.still(first)
		}
		return nil
	})
	if err = errors.Join(err, stilled); err != nil {
		return err
	}
	if err := cgroupOf(r.ve).await(ctx, "frozen 1"); err != nil {
		return err
	}
	return rewatchLink(r.ve, first)
}

// plug puts the NICs, which criu has just made, on the network behind shut gates.
func (r *restore) plug(ctx context.Context, first int) error {
	for _, nic := range r.ve.NICs {
		if err := r.ve.Plug.Attach(ctx, nic); err != nil {
			return err
		}
		if err := r.ve.Plug.Gate(ctx, nic, false); err != nil {
			return err
		}
	}
	if err := r.standing.Net.set(first); err != nil {
		return err
	}
	if err := setSysctls(first, r.standing.Sysctls); err != nil {
		return err
	}
	if err := setNeighbours(first, r.standing.Neighbours); err != nil {
		return err
	}
	return handDownGroups(r.ve, r.standing.Groups)
}

// still has the VE go on into the freezer, and not further, and lets any daemon find it there.
func (r *restore) still(pid int) error {
	if err := cgroupOf(r.ve).set("cgroup.freeze", "1"); err != nil {
		return err
	}
	if err := writeMove(r.ve, moveRecord{Paused: r.offer.Paused, Arrived: true}); err != nil {
		return err
	}
	if err := replaceFile(bundleDir(r.ve)+"/config.json", r.standing.Config); err != nil {
		return err
	}
	start, err := model.StartTime(pid)
	if err != nil {
		return err
	}
	if err := r.m.runtime.Restored(r.ve.ID, pid, start, bundleDir(r.ve), r.ve.Cgroup, r.standing.Runtime); err != nil {
		return err
	}
	return writeRecord(r.ve, pid)
}
