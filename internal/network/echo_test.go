package network

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"
)

func testEcho() echo {
	return echo{
		FromMAC: mac{2, 0, 0, 0, 0, 1}, ToMAC: mac{2, 0, 0, 0, 0, 2},
		From: netip.MustParseAddr("10.87.0.9"), To: netip.MustParseAddr("10.87.0.114"), ID: 0x1234, Nonce: 0x0123456789abcdef,
	}
}

// reply is what a VE makes of a request.
func reply(request []byte) []byte {
	b := bytes.Clone(request)
	copy(b, request[6:12])
	copy(b[6:], request[:6])
	copy(b[etherSize+12:], request[etherSize+16:etherSize+20])
	copy(b[etherSize+16:], request[etherSize+12:etherSize+16])
	icmp := b[etherSize+ipSize:]
	icmp[0], icmp[2], icmp[3] = icmpReply, 0, 0
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	return b
}

func TestEchoRequest(t *testing.T) {
	got := hex.EncodeToString(testEcho().request(7))
	const want = "020000000002" + "020000000001" + "0800" +
		"4500002c00000000400165a9" + "0a570009" + "0a570072" +
		"0800479812340007" + "0123456789abcdef" + "0000000000000007"
	if got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	frame := testEcho().request(7)
	if checksum(frame[etherSize:etherSize+ipSize]) != 0 || checksum(frame[etherSize+ipSize:]) != 0 {
		t.Error("wrong checksum")
	}
}

func TestEchoAnswer(t *testing.T) {
	e := testEcho()
	good := reply(e.request(1 << 40))
	if number, ok := e.answer(good); !ok || number != 1<<40 {
		t.Errorf("got %d, %v", number, ok)
	}
	if _, ok := e.answer(append(bytes.Clone(good), 0, 0, 0, 0)); !ok {
		t.Error("a padded frame is not read")
	}
	if _, ok := e.answer(e.request(1)); ok {
		t.Error("a request is taken for an answer")
	}
	for i := range good {
		if i >= 6 && i < 12 || i == etherSize+1 || i >= etherSize+4 && i < etherSize+9 || i == etherSize+10 || i == etherSize+11 {
			continue // the sender's MAC, and what IP has beside addresses, protocol and length
		}
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		if _, ok := e.answer(bad); ok {
			t.Errorf("byte %d wrong: taken for an answer", i)
		}
	}
}

func FuzzEchoAnswer(f *testing.F) {
	f.Add(reply(testEcho().request(1)))
	f.Add(testEcho().request(1))
	f.Fuzz(func(t *testing.T, frame []byte) {
		e := testEcho()
		if number, ok := e.answer(frame); ok {
			if len(frame) < echoSize || number == 0 && bytes.Equal(frame, e.request(0)) {
				t.Fatalf("%x is no answer", frame)
			}
		}
	})
}
