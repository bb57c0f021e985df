package cluster

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"polder/api"
	"polder/internal/store"
)

// identityVersion of the file identity.json.
const identityVersion = 1

// Etcd listens beside the peer port: its members for each other one above, for clients two above.
const (
	memberOffset = 1
	clientOffset = 2
)

// Identity is who this host is in its cluster, as it must know before the store is open. It is kept in DATA/cluster, which only
// root can read: identity.json, ca.pem, and host.pem with the host's certificate and key in one file, so that they are replaced
// together. The zero Address is a host alone, which has no such directory. Safe for concurrent use.
type Identity struct {
	options Options
	beside  *beside

	mu   sync.Mutex // guards what follows, and the files
	kept kept
}

// kept is the content of identity.json.
type kept struct {
	Version int    `json:"version"`
	Name    string `json:"name"`
	ID      string `json:"id"`
	Address string `json:"address"`
	Site    string `json:"site,omitempty"`
	Witness bool   `json:"witness,omitempty"`
	// Member: it opens the store as one of its members.
	Member bool `json:"member,omitempty"`
	// External: the store is an etcd of somebody else's.
	External bool `json:"external,omitempty"`
	// Endpoints are where the members of the store are reached, as URLs.
	Endpoints []string `json:"endpoints,omitempty"`
}

func clusterDir(data string) string { return filepath.Join(data, "cluster") }

// readIdentity reads what is kept; ok is false on a host alone.
func readIdentity(data string) (k kept, ok bool, err error) {
	path := filepath.Join(clusterDir(data), "identity.json")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &k)
	}
	if err != nil {
		return k, false, api.Errorf(api.Internal, "read this host's identity in its cluster: %w", err)
	}
	if k.Version > identityVersion {
		return k, false, api.Errorf(api.Unsupported, "read %s: it has version %d and this version of polder knows up to %d: use the newer version that wrote it", path, k.Version, identityVersion)
	}
	return k, true, nil
}

// change alters what is kept, in memory and on disk.
func (i *Identity) change(alter func(*kept)) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	next := i.kept
	alter(&next)
	if err := writeIdentity(clusterDir(i.options.Data), next); err != nil {
		return err
	}
	i.kept = next
	return nil
}

// now is what is kept at the moment.
func (i *Identity) now() kept {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.kept
}

// Name of this host.
func (i *Identity) Name() string { return i.options.Name }

// alone says that the host belongs to no cluster of several.
func (i *Identity) alone() bool { return i.now().Address == "" }

// Close ends what OpenStore and the Cluster have started on this host's behalf. It comes after Cluster.Close, and before the
// store is closed.
func (i *Identity) Close() { i.beside.stop() }

// tls names the files with which this host shows itself to the store's members.
func (i *Identity) tls() store.TLS {
	dir := clusterDir(i.options.Data)
	pair := filepath.Join(dir, "host.pem")
	return store.TLS{CA: filepath.Join(dir, "ca.pem"), Cert: pair, Key: pair}
}

func writeIdentity(dir string, k kept) error {
	k.Version = identityVersion
	text, err := json.MarshalIndent(k, "", "  ")
	if err == nil {
		err = writeFile(filepath.Join(dir, "identity.json"), append(text, '\n'))
	}
	if err != nil {
		return api.Errorf(api.Internal, "keep this host's identity in its cluster: %w", err)
	}
	return nil
}

// writeIdentityDir makes dir with all that an identity is, or nothing: it is renamed into its place when it is complete.
func writeIdentityDir(data string, k kept, ca, pair []byte) error {
	dir, next := clusterDir(data), clusterDir(data)+".new"
	err := errors.Join(os.RemoveAll(next), os.MkdirAll(next, 0o700))
	if err == nil {
		err = errors.Join(writeFile(filepath.Join(next, "ca.pem"), ca), writeFile(filepath.Join(next, "host.pem"), pair), writeIdentity(next, k))
	}
	if err == nil {
		err = os.Rename(next, dir)
	}
	if err != nil {
		return api.Errorf(api.Internal, "keep this host's identity in its cluster: %w", errors.Join(err, os.RemoveAll(next)))
	}
	return syncDir(data)
}

// writeFile replaces a file as a whole, for root only.
func writeFile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// sibling is the address of etcd's port that goes with a peer port.
func sibling(address string, offset uint16) string {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return ""
	}
	return netip.AddrPortFrom(at.Addr(), at.Port()+offset).String()
}
