package store

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"polder/api"
)

// zapLogger passes what etcd logs at level error and above to slog. etcd ends the process after a "fatal" message, which
// a library must not do: with fatal set, that function gets the message instead and the goroutine that logged it stands
// still for good, so that etcd does no further harm. removed is called when etcd says that its member is none any more.
func zapLogger(log *slog.Logger, fatal func(error), removed func()) *zap.Logger {
	var options []zap.Option
	if fatal != nil {
		hook := freeze{fatal}
		options = append(options, zap.WithFatalHook(hook), zap.WithPanicHook(hook))
	}
	return zap.New(slogCore{log: log, removed: removed}, options...)
}

type freeze struct{ fatal func(error) }

// OnWrite implements zapcore.CheckWriteHook.
func (f freeze) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	kind, text := api.Internal, e.Message
	encoder := zapcore.NewMapObjectEncoder()
	for _, field := range fields {
		field.AddTo(encoder)
	}
	if cause, ok := encoder.Fields["error"].(string); ok {
		text += ": " + cause
	}
	if isDiskFull(text) {
		kind = api.Exhausted
	}
	f.fatal(api.Errorf(kind, "etcd: %s", text))
	select {}
}

// slogCore is a zapcore.Core that writes to slog.
type slogCore struct {
	log     *slog.Logger
	removed func() // may be nil
}

func (c slogCore) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{c.log.With(attributes(fields)...), c.removed}
}

// What etcd says, in no other way, when it ends because the other members have told it that it was removed.
const (
	stopMessage    = "server error"
	removedMessage = "the member has been permanently removed from the cluster"
)

func (c slogCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	// A new member says so until its first snapshot of itself is written, some 0.1 s later; it tries again by itself.
	wanted := e.Level >= zapcore.ErrorLevel && e.Message != "failed to update storage version"
	if wanted || e.Message == stopMessage {
		return checked.AddCore(e, c)
	}
	return checked
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if e.Message == stopMessage {
		for _, field := range fields {
			if err, ok := field.Interface.(error); ok && err.Error() == removedMessage && c.removed != nil {
				c.removed()
				return nil
			}
		}
	}
	args := append(attributes(fields), "message", e.Message)
	c.log.Log(context.Background(), slog.LevelError, "etcd reports an error", args...)
	return nil
}

func (c slogCore) Sync() error { return nil }

func attributes(fields []zapcore.Field) []any {
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(encoder)
	}
	var args []any
	for k, v := range encoder.Fields {
		args = append(args, slog.Any(k, v))
	}
	return args
}
