//go:build integration

package container

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"polder/internal/model"
)

// A VE makes and removes control groups while its processes are listed: what goes meanwhile is passed over, what stays is found.
func TestPidsOfGroupsThatGo(t *testing.T) {
	ve := model.Spec{Name: "going", Cgroup: "/going-" + strconv.Itoa(os.Getpid())}
	top := string(cgroupOf(ve))
	stays, goes := filepath.Join(top, "stays"), filepath.Join(top, "goes", "deeper")
	must(t, os.MkdirAll(stays, 0o755))
	sleeper := exec.Command("sleep", "1000")
	must(t, sleeper.Start())
	stop, stopped := make(chan bool), make(chan bool)
	t.Cleanup(func() {
		close(stop)
		<-stopped
		must(t, sleeper.Process.Kill())
		sleeper.Wait() //nolint:errcheck // it was killed
		must(t, cgroupOf(ve).destroy(context.WithoutCancel(t.Context())))
	})
	must(t, os.WriteFile(filepath.Join(stays, "cgroup.procs"), []byte(strconv.Itoa(sleeper.Process.Pid)), 0))
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := os.MkdirAll(goes, 0o755); err != nil {
				t.Error(err)
				return
			}
			if err := os.Remove(goes); err != nil {
				t.Error(err)
			}
			if err := os.Remove(filepath.Dir(goes)); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 5000 {
		pids, err := pidsOf(ve)
		if err != nil || !slices.Equal(pids, []int{sleeper.Process.Pid}) {
			t.Fatalf("found %v, %v; want %d", pids, err, sleeper.Process.Pid)
		}
	}
	if _, err := pidsOf(model.Spec{Name: "nobody", Cgroup: "/nobody"}); err == nil {
		t.Error("the processes of a VE without a control group were listed")
	}
}
