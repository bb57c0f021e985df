package store

import (
	"bytes"
	"encoding/json"
	"fmt"

	"polder/api"
)

// Record is one value in a table, as of Revision.
type Record[T any] struct {
	Key   string
	Value T
	// Revision of the store at which the record was last written: compared by Update, DeleteIf and transactions.
	Revision int64
}

// Upgrade turns the data of one version of a record into that of the next.
type Upgrade func(old json.RawMessage) (json.RawMessage, error)

// envelope is how a record is stored.
type envelope struct {
	Version int             `json:"v"`
	Data    json.RawMessage `json:"d"`
}

// head is how the envelope of a version begins; the data and a brace follow.
func head(version int) string { return fmt.Sprintf(`{"v":%d,"d":`, version) }

func (t *Table[T]) encode(key string, value T) (string, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return "", api.Errorf(api.Internal, "encode %s: %w", t.name(key), err)
	}
	return t.head + string(data) + "}", nil
}

func (t *Table[T]) decode(key string, text []byte) (value T, err error) {
	if data, ok := bytes.CutPrefix(text, []byte(t.head)); ok && bytes.HasSuffix(data, []byte("}")) {
		if json.Unmarshal(data[:len(data)-1], &value) == nil { // the usual case, at half the cost
			return value, nil
		}
		value = *new(T)
	}
	return t.decodeAny(key, text)
}

// decodeAny reads a record of any version.
func (t *Table[T]) decodeAny(key string, text []byte) (value T, err error) {
	var e envelope
	if err := json.Unmarshal(text, &e); err != nil {
		return value, api.Errorf(api.Internal, "read %s: not a record: %w", t.name(key), err)
	}
	if e.Version > t.version {
		return value, api.Errorf(api.Unsupported, "read %s: it has version %d and this version of polder knows up to %d: use the newer version that wrote it", t.name(key), e.Version, t.version)
	}
	if e.Version < 1 {
		return value, api.Errorf(api.Internal, "read %s: record has no version", t.name(key))
	}
	for v := e.Version; v < t.version; v++ {
		if e.Data, err = t.upgrades[v-1](e.Data); err != nil {
			return value, api.Errorf(api.Internal, "read %s: upgrade from version %d: %w", t.name(key), v, err)
		}
	}
	if err := json.Unmarshal(e.Data, &value); err != nil {
		return value, api.Errorf(api.Internal, "read %s: %w", t.name(key), err)
	}
	return value, nil
}
