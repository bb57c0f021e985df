package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"polder/internal/command"
)

// incusScript starts and stops Incus; bench is run from the project's directory.
const incusScript = "bench/incus.sh"

// incus is a running Incus. Its API is reached by the socket, from outside its namespaces.
type incus struct {
	dir  string
	http *http.Client
}

// startIncus starts one, or uses the one that runs in dir.
func startIncus(ctx context.Context, dir string) (*incus, error) {
	var dialer net.Dialer
	i := &incus{dir: dir, http: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 16,
		DisableCompression:  true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", filepath.Join(dir, "state/unix.socket"))
		},
	}}}
	if _, err := i.get(ctx, "/1.0", nil); err == nil {
		return i, nil
	}
	if err := stopIncus(ctx, dir); err != nil { // what a killed run left
		return nil, err
	}
	_, err := command.Run(ctx, nil, incusScript, "up", dir)
	return i, err
}

func stopIncus(ctx context.Context, dir string) error {
	_, err := command.Run(ctx, nil, incusScript, "down", dir)
	return err
}

// cli runs Incus' own command line.
func (i *incus) cli(ctx context.Context, args ...string) (string, error) {
	out, err := command.Command{Name: "incus", Args: args, Env: []string{
		"INCUS_DIR=" + filepath.Join(i.dir, "state"), "INCUS_CONF=" + filepath.Join(i.dir, "config"),
	}}.Run(ctx)
	return string(out), err
}

func (i *incus) hasImage(ctx context.Context, alias string) bool {
	_, err := i.get(ctx, "/1.0/images/aliases/"+url.PathEscape(alias), nil)
	return err == nil
}

func (i *incus) importImage(ctx context.Context, tar, alias string) error {
	_, err := command.Run(ctx, nil, incusScript, "image", i.dir, tar, alias)
	return err
}

// get reads an answer of the API whole; into (nil: not wanted) gets its metadata.
func (i *incus) get(ctx context.Context, path string, into any) (size int, err error) {
	return i.call(ctx, http.MethodGet, path, nil, into)
}

func (i *incus) call(ctx context.Context, method, path string, body, into any) (size int, err error) {
	var content []byte
	if body != nil {
		if content, err = json.Marshal(body); err != nil {
			return 0, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://incus"+path, bytes.NewReader(content))
	if err != nil {
		return 0, err
	}
	res, err := i.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err
	}
	if res.StatusCode/100 != 2 {
		return 0, fmt.Errorf("incus: %s %s: %s: %s", method, path, res.Status, bytes.TrimSpace(data))
	}
	if into == nil {
		return len(data), nil
	}
	return len(data), json.Unmarshal(data, &struct {
		Metadata any `json:"metadata"`
	}{into})
}

// create makes one, and starts it when asked to.
func (i *incus) create(ctx context.Context, image, name string, start bool) error {
	var operation struct {
		ID string `json:"id"`
	}
	_, err := i.call(ctx, http.MethodPost, "/1.0/instances", map[string]any{
		"name": name, "type": "container", "start": start, "source": map[string]any{"type": "image", "alias": image},
	}, &operation)
	if err != nil {
		return err
	}
	var ended struct {
		Status string `json:"status"`
		Err    string `json:"err"`
	}
	_, err = i.get(ctx, "/1.0/operations/"+operation.ID+"/wait", &ended)
	if err == nil && ended.Status != "Success" {
		err = fmt.Errorf("incus: make %s: %s: %s", name, ended.Status, ended.Err)
	}
	return err
}

// daemon is the pid of incusd.
func (i *incus) daemon() (int, error) {
	text, err := os.ReadFile(filepath.Join(i.dir, "pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func decode(text string, into any) error {
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("%w: %s", err, text)
	}
	return nil
}
