package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"polder/api"
	"polder/internal/server"
	"polder/internal/server/servertest"
)

func newServer(t testing.TB) (*servertest.Backend, *httptest.Server) {
	t.Helper()
	backend := servertest.New()
	ts := httptest.NewServer(server.New(backend, server.Options{Version: "v1.2.3", Log: slog.New(slog.DiscardHandler)}))
	t.Cleanup(ts.Close)
	return backend, ts
}

func request(t testing.TB, ts *httptest.Server, method, path, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, ts.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := ts.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(data)
}

func TestProblems(t *testing.T) {
	backend, ts := newServer(t)
	backend.Add(api.VE{Name: "c1", State: api.Stopped})
	for _, c := range []struct {
		method, path, body string
		status             int
		kind               api.Kind
		detail             string
	}{
		{"GET", "/v1/ves/nope", "", 404, api.NotFound, `ve "nope" not found`},
		{"GET", "/v1/nothing", "", 404, api.NotFound, "no route GET /v1/nothing"},
		{"PUT", "/v1/ves", "", 404, api.NotFound, "no route PUT /v1/ves"},
		{"GET", "/v1/ves?odd=1", "", 400, api.Invalid, "odd"},
		{"POST", "/v1/ves", `{"name":"c1","image":"debian/13"}`, 409, api.Exists, "taken"},
		{"POST", "/v1/ves", `{"name":"C1","image":"debian/13"}`, 400, api.Invalid, `ve name "C1"`},
		{"POST", "/v1/ves", `{"name":"c2","image":"debian/13","cpu":2}`, 400, api.Invalid, "cpu"},
		{"POST", "/v1/ves", `{"name":"c2"}`, 400, api.Invalid, "image"},
		{"POST", "/v1/ves", `{"name":"c2","image":7}`, 400, api.Invalid, "expected string"},
		{"POST", "/v1/ves", `{"name":`, 400, api.Invalid, ""},
		{"POST", "/v1/ves", ``, 400, api.Invalid, "body"},
		{"POST", "/v1/ves", `{"name":"c2","image":"` + strings.Repeat("x", 5<<20) + `"}`, 400, api.Invalid, "large"},
		{"POST", "/v1/ves/c1/pause", "", 412, api.Precondition, "it is stopped"},
		{"POST", "/v1/ves/c1/stop", `{"forced":true}`, 400, api.Invalid, "forced"},
		{"GET", "/v1/ves/nope/logs", "", 404, api.NotFound, "nope"},
		{"GET", "/v1/ves/c1/logs?follow=maybe", "", 400, api.Invalid, "follow"},
		{"GET", "/v1/images/debian%2F14", "", 404, api.NotFound, `image "debian/14"`},
		{"GET", "/v1/images/debian%2F13/export?format=zip", "", 400, api.Invalid, `format "zip"`},
		{"GET", "/v1/images/debian%2F13/export?format=squashfs", "", 422, api.Unsupported, "mksquashfs"},
		{"POST", "/v1/images/import", "x", 400, api.Invalid, "alias"},
		{"POST", "/v1/images/import?alias=a&frmat=tar", "x", 400, api.Invalid, "frmat"},
		{"POST", "/v1/images/import?alias=a&size_bytes=-1", "x", 400, api.Invalid, "size_bytes"},
		{"GET", "/v1/events?after=x", "", 400, api.Invalid, "last event"},
		{"GET", "/v1/operations/ffff/events", "", 404, api.NotFound, "ffff"},
		{"POST", "/v1/operations/ffff/cancel", "", 404, api.NotFound, "ffff"},
		{"GET", "/v1/pools/nope/volumes", "", 404, api.NotFound, "nope"},
	} {
		name := c.method + " " + c.path
		res, body := request(t, ts, c.method, c.path, c.body)
		var p api.Problem
		if err := json.Unmarshal([]byte(body), &p); err != nil {
			t.Errorf("%s: no problem in %.200q", name, body)
			continue
		}
		if res.StatusCode != c.status || p.Status != c.status || p.Kind != c.kind || !strings.Contains(p.Detail, c.detail) {
			t.Errorf("%s: status %d, problem %+.300v; want %d %s with %q", name, res.StatusCode, p, c.status, c.kind, c.detail)
		}
		if got := res.Header.Get("Content-Type"); got != "application/problem+json" {
			t.Errorf("%s: content type %q", name, got)
		}
		if p.Type != "urn:polder:problem:"+string(c.kind) || p.Title == "" {
			t.Errorf("%s: type %q, title %q", name, p.Type, p.Title)
		}
	}
}

func TestShapes(t *testing.T) {
	backend, ts := newServer(t)
	if _, body := request(t, ts, "GET", "/v1/ves", ""); body != "[]\n" {
		t.Errorf("no VEs: %q, want an empty array", body)
	}
	backend.Add(api.VE{Name: "c1", State: api.Stopped})
	res, body := request(t, ts, "GET", "/v1/ves/c1", "")
	var ve map[string]any
	if err := json.Unmarshal([]byte(body), &ve); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"name", "model", "state", "host", "image", "addresses", "cpus", "memory_bytes", "disk_bytes", "labels", "created_at", "pid"} {
		if v, ok := ve[key]; !ok || v == nil {
			t.Errorf("a VE lacks %s (or it is null): %s", key, body)
		}
	}
	if _, ok := ve["$schema"]; ok || res.Header.Get("Link") != "" {
		t.Error("the answer links to a schema")
	}
	res, body = request(t, ts, "POST", "/v1/ves/c1/start", "")
	var op api.Operation
	if err := json.Unmarshal([]byte(body), &op); err != nil || res.StatusCode != http.StatusAccepted || op.Target != "ve/c1" {
		t.Errorf("start: status %d, %s", res.StatusCode, body)
	}
	if res, body := request(t, ts, "POST", "/v1/ves/c1/stop", `{"force":true,"timeout_seconds":3}`); res.StatusCode != http.StatusAccepted && res.StatusCode != http.StatusPreconditionFailed {
		t.Errorf("stop: status %d, %s", res.StatusCode, body)
	}
}

func TestOpenAPI(t *testing.T) {
	_, ts := newServer(t)
	res, body := request(t, ts, "GET", "/openapi.json", "")
	var doc struct {
		OpenAPI string
		Info    struct{ Title, Version string }
		Paths   map[string]map[string]struct {
			OperationID string
			Responses   map[string]any
		}
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		t.Fatalf("%v in %.200s", err, body)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || doc.Info.Version != "v1.2.3" || res.Header.Get("Content-Type") != "application/openapi+json" {
		t.Errorf("openapi %q, version %q, type %q", doc.OpenAPI, doc.Info.Version, res.Header.Get("Content-Type"))
	}
	for _, want := range []string{
		"GET /v1/ves", "POST /v1/ves", "GET /v1/ves/{name}", "DELETE /v1/ves/{name}", "POST /v1/ves/{name}/start", "POST /v1/ves/{name}/stop",
		"POST /v1/ves/{name}/restart", "POST /v1/ves/{name}/pause", "POST /v1/ves/{name}/resume", "GET /v1/ves/{name}/exec", "GET /v1/ves/{name}/console",
		"GET /v1/ves/{name}/logs", "GET /v1/images", "GET /v1/images/{ref}", "DELETE /v1/images/{ref}", "POST /v1/images/build", "POST /v1/images/import",
		"GET /v1/images/{ref}/export", "GET /v1/operations", "GET /v1/operations/{id}", "GET /v1/operations/{id}/events", "POST /v1/operations/{id}/cancel",
		"GET /v1/events", "GET /v1/hosts", "GET /v1/networks", "GET /v1/pools", "GET /v1/pools/{name}/volumes", "GET /v1/capabilities",
	} {
		method, path, _ := strings.Cut(want, " ")
		op, ok := doc.Paths[path][strings.ToLower(method)]
		if !ok || op.OperationID == "" || op.Responses["default"] == nil {
			t.Errorf("%s: not described, or without its errors: %+v", want, op)
		}
	}
	for _, want := range []string{"VE", "Operation", "Problem", "LaunchRequest", "Image"} {
		if doc.Components.Schemas[want] == nil {
			t.Errorf("schema %s is missing", want)
		}
	}
}

func TestMetrics(t *testing.T) {
	backend, ts := newServer(t)
	backend.Add(api.VE{Name: "c1", Model: api.Container, State: api.Running})
	backend.Add(api.VE{Name: "c2", Model: api.Container, State: api.Running})
	backend.Add(api.VE{Name: "v1", Model: api.VM, State: api.Stopped})
	request(t, ts, "POST", "/v1/ves/c1/stop", "")
	request(t, ts, "GET", "/v1/ves/nope", "")
	_, body := request(t, ts, "GET", "/metrics", "")
	for _, want := range []string{
		`polder_ves{model="vm",state="stopped"} 1`,
		`polder_operations{kind="stop",state="`,
		`polder_http_request_duration_seconds_count{method="GET",route="/v1/ves/{name}",status="404"} 1`,
		"go_goroutines ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestEventsContinueAfterTheLastOneSeen(t *testing.T) {
	backend, ts := newServer(t)
	for _, id := range []string{"0001", "0002", "0003"} {
		backend.Add(api.VE{Name: "c1", State: api.Stopped})
		request(t, ts, "POST", "/v1/ves/c1/start", "")
		if _, err := backend.WaitOperation(t.Context(), id, func(api.Operation) {}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, ts.URL+"/v1/events", nil)
	req.Header.Set("Last-Event-ID", "1")
	res, err := ts.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var text strings.Builder
	buf := make([]byte, 512)
	for !strings.Contains(text.String(), "id: 3\n") {
		n, err := res.Body.Read(buf)
		text.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v after %q", err, text.String())
		}
	}
	if strings.Contains(text.String(), "id: 1\n") || !strings.Contains(text.String(), "id: 2\n") {
		t.Errorf("got %q, want the events after 1", text.String())
	}
}

type panicking struct{ server.Backend }

func (panicking) VEs(context.Context) ([]api.VE, error) { panic("oops") }

func TestPanicIsAProblem(t *testing.T) {
	ts := httptest.NewServer(server.New(panicking{servertest.New()}, server.Options{}))
	defer ts.Close()
	res, body := request(t, ts, "GET", "/v1/ves", "")
	if res.StatusCode != http.StatusInternalServerError || !strings.Contains(body, `"internal"`) || strings.Contains(body, "goroutine") {
		t.Errorf("status %d, %s", res.StatusCode, body)
	}
}

func BenchmarkList1000(b *testing.B) {
	backend, ts := newServer(b)
	fill(backend)
	for b.Loop() {
		request(b, ts, "GET", "/v1/ves", "")
	}
}

func BenchmarkGetOf1000(b *testing.B) {
	backend, ts := newServer(b)
	fill(backend)
	for b.Loop() {
		request(b, ts, "GET", "/v1/ves/c500", "")
	}
}

func fill(backend *servertest.Backend) {
	for i := range 1000 {
		backend.Add(api.VE{
			Name: fmt.Sprintf("c%d", i), ID: "00000000-0000-4000-8000-000000000001", Model: api.Container, State: api.Stopped, Host: "h1", Image: "debian/13",
			ImageDigest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", CPUs: 1, MemoryBytes: api.GiB, DiskBytes: 10 * api.GiB,
			Labels: map[string]string{"role": "web", "tier": "front"}, Pool: "default", Restart: api.RestartOnFailure, CreatedAt: time.Unix(1, 0).UTC(),
			Addresses: []api.Address{{Network: "default", MAC: "52:54:00:00:00:01", Address: "10.87.0.5/24"}, {Network: "default", MAC: "52:54:00:00:00:01", Address: "fd00::5/64"}},
		})
	}
}
