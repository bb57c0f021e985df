package server

import (
	"context"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"polder/api"
)

// followAgain is the pause before events are asked for once more.
const followAgain = time.Second

// moveMetrics count the cluster's moves, as its events tell of them.
type moveMetrics struct {
	following atomic.Bool // one listener's Serve does it for all
	ended     *prometheus.CounterVec
	outage    *prometheus.HistogramVec
	sent      *prometheus.CounterVec
}

func newMoveMetrics() *moveMetrics {
	return &moveMetrics{
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "polder_moves_total", Help: "Moves of VEs that have ended, by how: done, failed or cancelled.",
		}, []string{"state"}),
		outage: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "polder_move_outage_seconds",
			Help:    "Outage of moved VEs as seen from outside, by mode.",
			Buckets: []float64{0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 2, 5, 10, 30, 60, 300},
		}, []string{"mode"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "polder_move_transferred_bytes_total", Help: "Bytes that moves sent between hosts, by mode.",
		}, []string{"mode"}),
	}
}

func (m *moveMetrics) register(r *prometheus.Registry) { r.MustRegister(m.ended, m.outage, m.sent) }

// follow counts from now on until ctx is done.
func (m *moveMetrics) follow(ctx context.Context, backend Backend) {
	if !m.following.CompareAndSwap(false, true) {
		return
	}
	defer m.following.Store(false)
	after := int64(0)
	for ctx.Err() == nil {
		// However it ended, it is asked for again: a store that does not answer does so later.
		backend.Events(ctx, after, func(e api.Event) error { //nolint:errcheck // see above
			after = e.ID
			m.count(e)
			return nil
		})
		select {
		case <-time.After(followAgain):
		case <-ctx.Done():
		}
	}
}

func (m *moveMetrics) count(e api.Event) {
	if e.Fields["kind"] != "move" {
		return
	}
	switch e.Kind {
	case "operation." + string(api.OperationDone):
		m.ended.WithLabelValues(string(api.OperationDone)).Inc()
		if ms, err := strconv.ParseFloat(e.Fields["outage_ms"], 64); err == nil && ms >= 0 {
			m.outage.WithLabelValues(e.Fields["mode"]).Observe(ms / 1000)
		}
		if n, err := strconv.ParseFloat(e.Fields["transferred_bytes"], 64); err == nil && n >= 0 {
			m.sent.WithLabelValues(e.Fields["mode"]).Add(n)
		}
	case "operation." + string(api.OperationFailed), "operation." + string(api.OperationCancelled):
		m.ended.WithLabelValues(e.Kind[len("operation."):]).Inc()
	}
}
