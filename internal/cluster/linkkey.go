package cluster

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"polder/api"
)

// linkKey is the key (X25519, as WireGuard has it) by which hosts encrypt what VEs send each other. The private half stays on this
// host, in DATA/cluster; the public one is in the host's record. Both are in base64.
type linkKey struct{ private, public string }

// readLinkKey finds this host's key, and makes it when there is none.
func readLinkKey(data string) (linkKey, error) {
	path := filepath.Join(clusterDir(data), "link.key")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newLinkKey(path)
	}
	if err != nil {
		return linkKey{}, api.Errorf(api.Internal, "read this host's key for links: %w", err)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err == nil {
		var key *ecdh.PrivateKey
		if key, err = ecdh.X25519().NewPrivateKey(raw); err == nil {
			return linkKeyOf(key), nil
		}
	}
	return linkKey{}, api.Errorf(api.Internal, "read this host's key for links: %s: %w: remove the file, and start again for a new key", path, err)
}

func newLinkKey(path string) (linkKey, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return linkKey{}, api.Errorf(api.Internal, "make this host's key for links: %w", err)
	}
	made := linkKeyOf(key)
	if err := writeFile(path, []byte(made.private+"\n")); err != nil {
		return linkKey{}, api.Errorf(api.Internal, "keep this host's key for links: %w", err)
	}
	return made, nil
}

func linkKeyOf(key *ecdh.PrivateKey) linkKey {
	return linkKey{
		private: base64.StdEncoding.EncodeToString(key.Bytes()),
		public:  base64.StdEncoding.EncodeToString(key.PublicKey().Bytes()),
	}
}

// LinkKey is the private key by which this host encrypts what it sends others for VEs; "" for a host alone. Its public half is in the
// host's record.
func (c *Cluster) LinkKey() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.links.private
}

// readLinks brings up this host's key for links, where it has an address.
func (c *Cluster) readLinks(k kept) (public string, err error) {
	if k.Address == "" {
		return "", nil
	}
	key, err := readLinkKey(c.identity.options.Data)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.links = key
	return key.public, nil
}
