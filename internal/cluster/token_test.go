package cluster

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"polder/api"
)

func someToken() token {
	return token{
		Secret: [16]byte{1, 2, 3}, Pin: [32]byte{9, 8, 7},
		Addresses: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7440"), netip.MustParseAddrPort("[2001:db8::1]:7440")},
	}
}

func TestTokenSurvivesItsText(t *testing.T) {
	want := someToken()
	got, err := parseToken(" " + want.String() + "\n")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if got.key() != want.key() || strings.Contains(want.String(), want.key()) {
		t.Errorf("key %q of %q", got.key(), want)
	}
}

func TestADamagedTokenIsRefused(t *testing.T) {
	whole := someToken().String()
	for _, text := range []string{"", "polder", tokenPrefix, tokenPrefix + "AQ", whole[:len(whole)-1], whole + "A", strings.ToUpper(whole), "x" + whole} {
		if _, err := parseToken(text); api.KindOf(err) != api.Invalid {
			t.Errorf("%q: %v", text, err)
		}
	}
	for i := len(tokenPrefix) + 2; i < len(whole); i++ {
		other := byte('A')
		if whole[i] == other {
			other = 'B'
		}
		if _, err := parseToken(whole[:i] + string(other) + whole[i+1:]); err == nil {
			t.Errorf("a token with another letter at %d is taken", i)
		}
	}
}

func TestANewerTokenIsUnsupported(t *testing.T) {
	body := []byte{tokenVersion + 1, 'n', 'e', 'w'}
	newer := base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(body, crc32.ChecksumIEEE(body)))
	if _, err := parseToken(tokenPrefix + newer); api.KindOf(err) != api.Unsupported {
		t.Error(err)
	}
	// Noise has a version as well, and is to be told apart from that of a newer Polder.
	if _, err := parseToken(tokenPrefix + "nonsense"); api.KindOf(err) != api.Invalid {
		t.Error(err)
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(someToken().String())
	f.Add(tokenPrefix)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseToken(text)
		if err != nil {
			return
		}
		if again, err := parseToken(got.String()); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%q is read as %v, whose text is read as %v, %v", text, got, again, err)
		}
	})
}
