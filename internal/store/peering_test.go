package store_test

import (
	"strings"
	"testing"

	"polder/api"
	"polder/internal/store"
)

func TestWrongPeeringIsRefused(t *testing.T) {
	files := store.TLS{CA: "/nowhere/ca.pem", Cert: "/nowhere/cert.pem", Key: "/nowhere/key.pem"}
	for _, test := range []struct {
		name    string
		peering store.Peering
		want    string
	}{
		{"no address", store.Peering{Name: "h1", Client: "127.0.0.1:1", TLS: files}, `peer address "": want IP:PORT`},
		{"name", store.Peering{Name: "h1", Peer: "127.0.0.1:1", Client: "localhost:2", TLS: files}, `client address "localhost:2"`},
		{"everywhere", store.Peering{Name: "h1", Peer: "0.0.0.0:1", Client: "127.0.0.1:1", TLS: files}, `peer address "0.0.0.0:1"`},
		{"no port", store.Peering{Name: "h1", Peer: "127.0.0.1:0", Client: "127.0.0.1:1", TLS: files}, `peer address "127.0.0.1:0"`},
		{"nobody", store.Peering{Peer: "127.0.0.1:1", Client: "127.0.0.1:2", TLS: files}, "has no name"},
		{"no certificate", store.Peering{Name: "h1", Peer: "127.0.0.1:1", Client: "127.0.0.1:2"}, "want a CA, a certificate and its key"},
		{"no file", store.Peering{Name: "h1", Peer: "127.0.0.1:1", Client: "127.0.0.1:2", TLS: files}, "/nowhere/ca.pem: no such file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := store.Open(t.Context(), store.Options{Dir: t.TempDir(), Peering: &test.peering})
			wantKind(t, err, api.Invalid)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %q in it", err, test.want)
			}
		})
	}
	_, err := store.RunMember(t.Context(), store.Options{Dir: t.TempDir()})
	wantKind(t, err, api.Invalid)
}
