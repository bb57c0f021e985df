package server

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// scrapeTime bounds what the backend may take to answer for one scrape.
const scrapeTime = 5 * time.Second

// metrics are the server's own: what the cluster holds, how long requests take, and how moves went.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
	moves    *moveMetrics
}

func newMetrics(backend Backend, log *slog.Logger) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "polder_http_request_duration_seconds",
			Help:    "Time to answer a request, by method, route and status. Streams count until their end.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9),
		}, []string{"method", "route", "status"}),
		moves: newMoveMetrics(),
	}
	m.moves.register(m.registry)
	m.registry.MustRegister(
		m.requests,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&inventory{
			backend: backend,
			log:     log,
			ves:     prometheus.NewDesc("polder_ves", "VEs by model and state.", []string{"model", "state"}, nil),
			ops:     prometheus.NewDesc("polder_operations", "Operations that are kept, by kind and state.", []string{"kind", "state"}, nil),
		},
	)
	return m
}

func (m *metrics) handler(more prometheus.Gatherer) http.Handler {
	all := prometheus.Gatherers{m.registry}
	if more != nil {
		all = append(all, more)
	}
	return promhttp.HandlerFor(all, promhttp.HandlerOpts{})
}

// observe files a request under its route, not its path: there are few routes.
func (m *metrics) observe(r *http.Request, status int, took time.Duration) {
	_, route, _ := strings.Cut(r.Pattern, " ")
	if route == "" {
		route = "none"
	}
	m.requests.WithLabelValues(r.Method, route, strconv.Itoa(status)).Observe(took.Seconds())
}

// inventory counts VEs and operations at every scrape.
type inventory struct {
	backend  Backend
	log      *slog.Logger
	ves, ops *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (i *inventory) Describe(ch chan<- *prometheus.Desc) {
	ch <- i.ves
	ch <- i.ops
}

// Collect implements prometheus.Collector.
func (i *inventory) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	ves, err := i.backend.VEs(ctx)
	if err != nil {
		i.log.Warn("count ves for metrics", "err", err)
	}
	byModel := map[[2]string]int{}
	for _, ve := range ves {
		byModel[[2]string{string(ve.Model), string(ve.State)}]++
	}
	send(ch, i.ves, byModel)
	ops, err := i.backend.Operations(ctx)
	if err != nil {
		i.log.Warn("count operations for metrics", "err", err)
	}
	byKind := map[[2]string]int{}
	for _, op := range ops {
		byKind[[2]string{op.Kind, string(op.State)}]++
	}
	send(ch, i.ops, byKind)
}

func send(ch chan<- prometheus.Metric, desc *prometheus.Desc, counts map[[2]string]int) {
	for labels, n := range counts {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), labels[0], labels[1])
	}
}
