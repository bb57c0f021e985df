package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"polder/api"
	"polder/internal/model"
)

// Fork starts a QEMU whose memory is a private mapping of what was frozen, and that reads the devices' state.
func (m *Model) Fork(ctx context.Context, ve model.Spec, from model.Frozen) (model.Process, error) {
	f, err := ours(from)
	var p model.Process
	if err == nil {
		p, err = m.fork(ctx, ve, f)
	}
	if err != nil {
		return p, fmt.Errorf("fork vm %q: %w", ve.Name, err)
	}
	return p, nil
}

// Wake lets a fork go on, cut off from its network until it knows who it is.
func (m *Model) Wake(ctx context.Context, ve model.Spec, from model.Frozen) error {
	f, err := ours(from)
	if err == nil {
		err = m.wake(ctx, ve, f)
	}
	if err != nil {
		return fmt.Errorf("wake vm %q: %w", ve.Name, err)
	}
	return nil
}

func ours(from model.Frozen) (*frozen, error) {
	f, ok := from.(*frozen)
	if !ok {
		return nil, api.Errorf(api.Internal, "what was frozen is no vm")
	}
	return f, nil
}

func (m *Model) fork(ctx context.Context, ve model.Spec, from *frozen) (model.Process, error) {
	if pid, err := holder(ve); err != nil {
		return model.Process{}, err
	} else if pid != 0 {
		return model.Process{}, api.Errorf(api.Conflict, "it runs already (pid %d)", pid)
	}
	offer := m.offer()
	offer.Incoming = true
	if from.facts.Accelerator != accelName(offer.KVM) {
		return model.Process{}, unlike(from.facts.Accelerator, accelName(offer.KVM))
	}
	if from.facts.Seed != (ve.CloudInit.UserData != "") {
		return model.Process{}, api.Errorf(api.Precondition, "its hardware differs: one of the two has a disk with user-data")
	}
	if err := m.clean(ctx, ve); err != nil {
		return model.Process{}, err
	}
	own := from.facts.Machine
	own.Generation = uuid.NewString() // the kernel inside makes its random numbers anew
	if err := writeJSON(filepath.Join(ve.Dir, "machine.json"), own); err != nil {
		return model.Process{}, err
	}
	if err := m.prepare(ctx, ve); err != nil {
		return model.Process{}, err
	}
	if err := bring(ve, hello{Vars: from.facts.Vars}); err != nil {
		return model.Process{}, err
	}
	w, err := m.launch(ctx, shut(ve), offer)
	if err == nil {
		err = answers(ctx, ve, w)
	}
	if err == nil {
		err = m.recall(ctx, ve, from)
	}
	if err != nil {
		return model.Process{}, errors.Join(err, m.tidyAfter(ctx, ve, w))
	}
	return m.process(ve, w)
}

// recall gives a QEMU that waits the memory and the state.
func (m *Model) recall(ctx context.Context, ve model.Spec, from *frozen) error {
	q, err := m.openMonitor(ctx, ve)
	if err != nil {
		return err
	}
	defer q.Close()
	at, err := findMemory(ve)
	if err != nil {
		return err
	}
	if err := at.mapPrivate(ctx, q, from.memory); err != nil {
		return err
	}
	if err := q.addState(ctx, from.state, os.O_RDONLY); err != nil {
		return err
	}
	if err := q.do(ctx, "migrate-set-capabilities", capabilities(true, forkCopy, []string{"events"})); err != nil {
		return err
	}
	if err := q.do(ctx, "migrate-incoming", stateURI); err != nil {
		return err
	}
	if err := q.await(ctx, 2*time.Millisecond, func() (bool, error) {
		got, err := q.migration(ctx)
		if err == nil {
			err = got.failed()
		}
		return got.Status == "completed", err
	}); err != nil {
		return fmt.Errorf("read the state: %w", err)
	}
	return q.tidy(ctx)
}

func (m *Model) wake(ctx context.Context, ve model.Spec, from *frozen) error {
	q, err := m.openMonitor(ctx, ve)
	if err != nil {
		return err
	}
	defer q.Close()
	if err := q.do(ctx, "cont", nil); err != nil {
		return err
	}
	if ve.ID == from.facts.ID { // it is its own past
		m.tellTime(ctx, ve)
	} else if err := m.rename(ctx, ve, from.facts.Name); err != nil {
		return err
	}
	return q.gates(ctx, ve, true)
}
