package store_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"polder/api"
	"polder/internal/store"
)

func TestWrongEndpointsAndFilesAreRefused(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	secure := []string{"https://127.0.0.1:1"}
	for name, test := range map[string]struct {
		options store.Options
		want    string
	}{
		"no scheme":       {store.Options{Endpoints: []string{"127.0.0.1:2379"}}, "want http://HOST:PORT"},
		"path":            {store.Options{Endpoints: []string{"http://h:1/v3"}}, "want http://HOST:PORT"},
		"mixed":           {store.Options{Endpoints: []string{"http://h:1", "https://h:1"}}, "want http for all"},
		"files by http":   {store.Options{Endpoints: []string{"http://h:1"}, TLS: store.TLS{CA: text}}, "want https endpoints"},
		"files, embedded": {store.Options{Dir: t.TempDir(), TLS: store.TLS{CA: text}}, "want the endpoints of an external etcd"},
		"ca missing":      {store.Options{Endpoints: secure, TLS: store.TLS{CA: "/nowhere"}}, "open /nowhere: no such file"},
		"ca damaged":      {store.Options{Endpoints: secure, TLS: store.TLS{CA: text}}, "no certificate in PEM form"},
		"key missing":     {store.Options{Endpoints: secure, TLS: store.TLS{Cert: text}}, "want both a certificate and its key"},
		"cert missing":    {store.Options{Endpoints: secure, TLS: store.TLS{Cert: "/nowhere", Key: text}}, "open /nowhere: no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := store.Open(t.Context(), test.options)
			wantKind(t, err, api.Invalid)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %q in it", err, test.want)
			}
		})
	}
}
