package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// An image begins with these numbers (criu/include/magic.h), then has records: length, protobuf.
const (
	imageMagic  = 0x54564319
	cgroupMagic = 0x59383330
	filesMagic  = 0x56303138
	mmMagic     = 0x57492820
)

// records takes an image of one kind apart.
func records(image []byte, magic uint32) (all [][]byte, err error) {
	if len(image) < 8 || binary.LittleEndian.Uint32(image) != imageMagic || binary.LittleEndian.Uint32(image[4:]) != magic {
		return nil, errors.New("not an image of this kind")
	}
	for rest := image[8:]; len(rest) > 0; {
		if len(rest) < 4 {
			return nil, errors.New("it ends within the length of a record")
		}
		size := binary.LittleEndian.Uint32(rest)
		if rest = rest[4:]; uint64(size) > uint64(len(rest)) {
			return nil, fmt.Errorf("a record has %d bytes, there are %d", size, len(rest))
		}
		all, rest = append(all, rest[:size:size]), rest[size:]
	}
	return all, nil
}

// compose puts an image together.
func compose(magic uint32, all [][]byte) []byte {
	image := binary.LittleEndian.AppendUint32(nil, imageMagic)
	image = binary.LittleEndian.AppendUint32(image, magic)
	for _, record := range all {
		image = binary.LittleEndian.AppendUint32(image, uint32(len(record)))
		image = append(image, record...)
	}
	return image
}
