package cluster

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"net/netip"
	"strings"

	"polder/api"
)

// token is what lets one host in: how to reach the cluster, how to know that it is the one, and a secret. Its text form is
//
//	polder-join-BASE64URL(version, secret, pin, count, count × (length of IP, IP, port), CRC-32 of all before)
type token struct {
	Secret    [16]byte
	Pin       [sha256.Size]byte // of the CA's certificate
	Addresses []netip.AddrPort
}

const (
	tokenPrefix  = "polder-join-"
	tokenVersion = 1
	// mostAddresses in a token: it is copied by hand.
	mostAddresses = 4
)

func newSecret() (secret [16]byte) {
	rand.Read(secret[:]) //nolint:errcheck // by its documentation it never fails
	return secret
}

// key is how a token is known to the store, which does not keep the secret itself.
func (t token) key() string {
	sum := sha256.Sum256(append([]byte(tokenPrefix), t.Secret[:]...))
	return hex.EncodeToString(sum[:])
}

func (t token) String() string {
	b := append([]byte{tokenVersion}, t.Secret[:]...)
	b = append(b, t.Pin[:]...)
	b = append(b, byte(len(t.Addresses)))
	for _, a := range t.Addresses {
		ip := a.Addr().AsSlice()
		b = append(append(b, byte(len(ip))), ip...)
		b = binary.BigEndian.AppendUint16(b, a.Port())
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// parseToken reads a token; api.Invalid.
func parseToken(text string) (token, error) {
	malformed := func(why string) (token, error) {
		return token{}, api.Errorf(api.Invalid, "join token: %s: copy the whole of what `polder host token` printed", why)
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	if !ok {
		return malformed("it does not begin with " + tokenPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) < 5 || len(b) > 1024 {
		return malformed("it is not whole")
	}
	body, sum := b[:len(b)-4], b[len(b)-4:]
	if binary.BigEndian.Uint32(sum) != crc32.ChecksumIEEE(body) {
		return malformed("it was cut or altered")
	}
	if b[0] != tokenVersion {
		return token{}, api.Errorf(api.Unsupported, "join token: it has version %d and this version of polder knows %d: use the cluster's version of polder here", b[0], tokenVersion)
	}
	t, ok := decodeToken(bytes.NewBuffer(body[1:]))
	if !ok {
		return malformed("it is damaged")
	}
	return t, nil
}

func decodeToken(b *bytes.Buffer) (t token, ok bool) {
	if b.Len() < len(t.Secret)+len(t.Pin)+1 {
		return t, false
	}
	copy(t.Secret[:], b.Next(len(t.Secret)))
	copy(t.Pin[:], b.Next(len(t.Pin)))
	count, _ := b.ReadByte()
	if count == 0 || count > mostAddresses {
		return t, false
	}
	for range count {
		size, err := b.ReadByte()
		ip, valid := netip.AddrFromSlice(b.Next(int(size)))
		port := b.Next(2)
		if err != nil || !valid || len(port) != 2 {
			return t, false
		}
		t.Addresses = append(t.Addresses, netip.AddrPortFrom(ip, binary.BigEndian.Uint16(port)))
	}
	return t, b.Len() == 0
}
