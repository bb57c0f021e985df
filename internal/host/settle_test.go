package host

import (
	"testing"
	"time"

	"polder/api"
	"polder/internal/model"
)

func TestRestartWanted(t *testing.T) {
	var (
		halt   = model.Exit{}
		crash  = model.Exit{Crashed: true}
		reboot = model.Exit{Reboot: true}
	)
	for policy, wanted := range map[api.RestartPolicy]map[model.Exit]bool{
		api.RestartNever:     {halt: false, crash: false, reboot: true, hostWentDown: false},
		api.RestartOnFailure: {halt: false, crash: true, reboot: true, hostWentDown: true},
		api.RestartAlways:    {halt: true, crash: true, reboot: true, hostWentDown: true},
	} {
		for exit, want := range wanted {
			if got := restartWanted(policy, exit); got != want {
				t.Errorf("policy %s, %+v: restart is %v, want %v", policy, exit, got, want)
			}
		}
	}
}

// A VE that keeps crashing is restarted with growing pauses, then given up; reboots in between don't count.
func TestCountRestart(t *testing.T) {
	crash := model.Exit{Crashed: true}
	now := time.Unix(0, 0)
	var v VE
	for _, want := range []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second} {
		for _, harmless := range []model.Exit{{Reboot: true}, hostWentDown} {
			if pause, ok := v.countRestart(harmless, now); pause != 0 || !ok {
				t.Errorf("after %+v: pause %v, %v", harmless, pause, ok)
			}
		}
		if pause, ok := v.countRestart(crash, now); pause != want || !ok {
			t.Errorf("restart %d: pause %v, %v, want %v", v.Restarts, pause, ok, want)
		}
		now = now.Add(time.Minute)
	}
	if _, ok := v.countRestart(crash, now); ok {
		t.Errorf("not given up after %d restarts", v.Restarts)
	}
	if pause, ok := v.countRestart(crash, now.Add(restartWindow)); pause != 0 || !ok || v.Restarts != 1 {
		t.Errorf("in a new window: pause %v, %v, %d restarts", pause, ok, v.Restarts)
	}
}
