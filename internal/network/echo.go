package network

import (
	"encoding/binary"
	"net/netip"
)

// echo is what a probe's requests and their answers have in common.
type echo struct {
	FromMAC mac        `json:"from_mac"`
	ToMAC   mac        `json:"to_mac"`
	From    netip.Addr `json:"from"` // IPv4
	To      netip.Addr `json:"to"`   // IPv4
	ID      uint16     `json:"id"`
	Nonce   uint64     `json:"nonce"` // tells this probe's packets from those of another with the same id
}

// Sizes and places in an Ethernet frame with IPv4 and ICMP (RFC 791, RFC 792), without IP options.
const (
	etherSize, ipSize, icmpSize = 14, 20, 8
	payloadSize                 = 16 // nonce, number
	echoSize                    = etherSize + ipSize + icmpSize + payloadSize

	etherIPv4              = 0x0800
	protocolICMP           = 1
	icmpReply, icmpRequest = 0, 8
)

// request is the frame of an echo request with a number.
func (e echo) request(number uint64) []byte {
	b := make([]byte, echoSize)
	copy(b, e.ToMAC[:])
	copy(b[6:], e.FromMAC[:])
	binary.BigEndian.PutUint16(b[12:], etherIPv4)

	ip := b[etherSize:]
	ip[0], ip[8], ip[9] = 0x45, 64, protocolICMP // version and header length, time to live
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	copy(ip[12:], e.From.AsSlice())
	copy(ip[16:], e.To.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip[:ipSize]))

	icmp := ip[ipSize:]
	icmp[0] = icmpRequest
	binary.BigEndian.PutUint16(icmp[4:], e.ID)
	binary.BigEndian.PutUint16(icmp[6:], uint16(number))
	binary.BigEndian.PutUint64(icmp[icmpSize:], e.Nonce)
	binary.BigEndian.PutUint64(icmp[icmpSize+8:], number)
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	return b
}

// answer reads the number of the request that a frame answers; ok is false when it is something else.
func (e echo) answer(frame []byte) (number uint64, ok bool) {
	if len(frame) < echoSize || mac(frame[:6]) != e.FromMAC || binary.BigEndian.Uint16(frame[12:]) != etherIPv4 {
		return 0, false
	}
	ip := frame[etherSize:]
	header := int(ip[0]&15) * 4
	length := int(binary.BigEndian.Uint16(ip[2:]))
	from, to := netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	if ip[0]>>4 != 4 || header < ipSize || length > len(ip) || length != header+icmpSize+payloadSize || ip[9] != protocolICMP || from != e.To || to != e.From {
		return 0, false
	}
	icmp := ip[header:length]
	if icmp[0] != icmpReply || binary.BigEndian.Uint16(icmp[4:]) != e.ID || binary.BigEndian.Uint64(icmp[icmpSize:]) != e.Nonce || checksum(icmp) != 0 {
		return 0, false
	}
	return binary.BigEndian.Uint64(icmp[icmpSize+8:]), true
}

// checksum of RFC 1071; over data that has a right one in it, it is 0.
func checksum(data []byte) uint16 {
	var sum uint32
	for ; len(data) >= 2; data = data[2:] {
		sum += uint32(binary.BigEndian.Uint16(data))
	}
	if len(data) == 1 {
		sum += uint32(data[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
