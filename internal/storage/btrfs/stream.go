package btrfs

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"time"

	"polder/api"
	"polder/internal/storage/pooldir"
)

// The kernel's stream of a subvolume, version 1, as fs/btrfs/send.h has it: a header, then commands, each with its length, number, checksum and
// attributes. Numbers are little-endian.
const (
	streamMagic   = "btrfs-stream\x00"
	streamVersion = 1
	// longestCommand is more than the kernel's BTRFS_SEND_BUF_SIZE_V1 of 64 KiB.
	longestCommand = 128 << 10
)

// Commands.
const (
	cmdSubvolume   = 1
	cmdSnapshot    = 2
	cmdMakeFile    = 3
	cmdMakeDir     = 4
	cmdMakeDevice  = 5
	cmdMakeFIFO    = 6
	cmdMakeSocket  = 7
	cmdSymlink     = 8
	cmdRename      = 9
	cmdLink        = 10
	cmdUnlink      = 11
	cmdRemoveDir   = 12
	cmdSetXattr    = 13
	cmdRemoveXattr = 14
	cmdWrite       = 15
	cmdClone       = 16
	cmdTruncate    = 17
	cmdChmod       = 18
	cmdChown       = 19
	cmdUtimes      = 20
	cmdEnd         = 21
)

// Attributes.
const (
	attrUUID        = 1
	attrSize        = 4
	attrMode        = 5
	attrUID         = 6
	attrGID         = 7
	attrRdev        = 8
	attrMtime       = 10
	attrAtime       = 11
	attrXattrName   = 13
	attrXattrData   = 14
	attrPath        = 15
	attrPathTo      = 16
	attrPathLink    = 17
	attrOffset      = 18
	attrData        = 19
	attrCloneUUID   = 20
	attrClonePath   = 22
	attrCloneOffset = 23
	attrCloneLength = 24
	attrCount       = 32
)

// commandReader reads one subvolume's stream. What it returned is good until the next call.
type commandReader struct {
	r   io.Reader
	buf []byte
	crc *crc32.Table
}

type streamCommand struct {
	number uint16
	attrs  [attrCount][]byte
	bad    error // the first attribute that was asked for and is not there, or not right
}

func newCommandReader(r io.Reader) (*commandReader, error) {
	var head [len(streamMagic) + 4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, pooldir.CutOff(err)
	}
	if !bytes.HasPrefix(head[:], []byte(streamMagic)) {
		return nil, api.Errorf(api.Invalid, "what comes is not btrfs' stream")
	}
	if v := binary.LittleEndian.Uint32(head[len(streamMagic):]); v != streamVersion {
		return nil, api.Errorf(api.Unsupported, "btrfs' stream has version %d, Polder knows %d", v, streamVersion)
	}
	return &commandReader{r: r, buf: make([]byte, 64<<10), crc: crc32.MakeTable(crc32.Castagnoli)}, nil
}

const commandHeader = 10

func (c *commandReader) next() (*streamCommand, error) {
	head := c.buf[:commandHeader]
	if _, err := io.ReadFull(c.r, head); err != nil {
		return nil, pooldir.CutOff(err)
	}
	length := binary.LittleEndian.Uint32(head)
	cmd := &streamCommand{number: binary.LittleEndian.Uint16(head[4:])}
	want := binary.LittleEndian.Uint32(head[6:])
	if length > longestCommand {
		return nil, api.Errorf(api.Invalid, "btrfs' stream has a command of %d bytes", length)
	}
	if need := commandHeader + int(length); need > len(c.buf) {
		c.buf = append(c.buf, make([]byte, need-len(c.buf))...)
	}
	all := c.buf[:commandHeader+int(length)]
	if _, err := io.ReadFull(c.r, all[commandHeader:]); err != nil {
		return nil, pooldir.CutOff(err)
	}
	clear(all[6:commandHeader])
	// The kernel's crc32c starts at 0 and inverts nothing.
	if got := ^crc32.Update(^uint32(0), c.crc, all); got != want {
		return nil, api.Errorf(api.Invalid, "btrfs' stream is damaged: command %d has a wrong checksum", cmd.number)
	}
	return cmd, cmd.parse(all[commandHeader:])
}

func (s *streamCommand) parse(rest []byte) error {
	for len(rest) > 0 {
		if len(rest) < 4 {
			return api.Errorf(api.Invalid, "btrfs' stream: command %d has %d bytes too many", s.number, len(rest))
		}
		kind, length := binary.LittleEndian.Uint16(rest), int(binary.LittleEndian.Uint16(rest[2:]))
		rest = rest[4:]
		if length > len(rest) || kind >= attrCount {
			return api.Errorf(api.Invalid, "btrfs' stream: command %d has an attribute %d of %d bytes", s.number, kind, length)
		}
		s.attrs[kind] = rest[:length:length]
		rest = rest[length:]
	}
	return nil
}

func (s *streamCommand) fail(attr int) {
	if s.bad == nil {
		s.bad = api.Errorf(api.Invalid, "btrfs' stream: command %d lacks attribute %d, or it is not right", s.number, attr)
	}
}

func (s *streamCommand) bytes(attr int) []byte {
	if s.attrs[attr] == nil {
		s.fail(attr)
	}
	return s.attrs[attr]
}

// name is an attribute that the kernel takes as a string.
func (s *streamCommand) name(attr int) string {
	text := s.bytes(attr)
	if len(text) == 0 || bytes.IndexByte(text, 0) >= 0 {
		s.fail(attr)
	}
	return string(text)
}

// path is what the command is about: in the stream the subvolume itself has an empty path.
func (s *streamCommand) path() string {
	if text := s.attrs[attrPath]; text != nil && len(text) == 0 {
		return "."
	}
	return s.name(attrPath)
}

func (s *streamCommand) number64(attr int) uint64 {
	if len(s.attrs[attr]) != 8 {
		s.fail(attr)
		return 0
	}
	return binary.LittleEndian.Uint64(s.attrs[attr])
}

func (s *streamCommand) offset(attr int) int64 {
	n := s.number64(attr)
	if n > 1<<60 {
		s.fail(attr)
		return 0
	}
	return int64(n)
}

func (s *streamCommand) time(attr int) time.Time {
	b := s.attrs[attr]
	if len(b) != 12 {
		s.fail(attr)
		return time.Time{}
	}
	return time.Unix(int64(binary.LittleEndian.Uint64(b)), int64(binary.LittleEndian.Uint32(b[8:])))
}
