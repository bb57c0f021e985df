package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"
)

// answerSync plays an agent that has old answers and noise in its pipe.
func (p *peer) answerSync() {
	if b, err := p.r.ReadByte(); err != nil || b != 0xFF {
		p.t.Errorf("began with %x, %v", b, err)
	}
	line, err := p.r.ReadBytes('\n')
	if err != nil {
		p.t.Error(err)
		return
	}
	var req struct {
		Execute   string `json:"execute"`
		Arguments struct {
			ID int64 `json:"id"`
		} `json:"arguments"`
	}
	if err := json.Unmarshal(line, &req); err != nil || req.Execute != "guest-sync-delimited" {
		p.t.Errorf("got %q, %v", line, err)
	}
	p.say(`"return": {"old":1}}` + "\n" + `{"error": {"class": "GenericError"}}` + "\n")
	p.say("\xff" + `{"return": 12345}` + "\n")
	p.say("\xff"+`{"return": %d}`+"\n", req.Arguments.ID)
}

func TestAgentSynchronizesThenCalls(t *testing.T) {
	a, err := DialAgent(t.Context(), listen(t, func(p *peer) {
		p.answerSync()
		p.hear()
		p.say(`{"return": {"pid": 7}}` + "\n")
		p.hear()
		p.say(`{"error": {"class": "GenericError", "desc": "no"}}` + "\n")
		p.hear()
		p.say(`{"return": {}}` + "\n")
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var got struct {
		PID int `json:"pid"`
	}
	if err := a.Call(t.Context(), "guest-exec", map[string]string{"path": "/bin/true"}, &got); err != nil || got.PID != 7 {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := a.Call(t.Context(), "guest-x", nil, nil); !IsClass(err, "GenericError") || a.Broken() {
		t.Errorf("got %v, broken %v", err, a.Broken())
	}
	if err := a.Call(t.Context(), "guest-ping", nil, nil); err != nil {
		t.Error(err)
	}
}

func TestAgentCallThatWasCutOffBreaksTheConnection(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a, err := DialAgent(t.Context(), listen(t, func(p *peer) {
		p.answerSync()
		p.hear()
		cancel()
		_, _ = p.r.ReadByte() // until the other side hangs up
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Call(ctx, "guest-ping", nil, nil); !errors.Is(err, context.Canceled) || !a.Broken() {
		t.Errorf("got %v, broken %v", err, a.Broken())
	}
	if err := a.Call(t.Context(), "guest-ping", nil, nil); err == nil {
		t.Error("a broken connection was used")
	}
	a.Close()
}

func TestSilentAgentIsGivenUp(t *testing.T) {
	quiet := make(chan struct{})
	defer close(quiet)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := DialAgent(ctx, listen(t, func(*peer) { <-quiet })); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
