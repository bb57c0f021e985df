package store_test

import (
	"testing"

	"polder/api"
	"polder/internal/store"
)

// FuzzDecode feeds foreign bytes to the reader of records: it must neither panic nor take a newer version for its own.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{`{"v":1,"d":{"Name":"c1"}}`, `{"v":2,"d":{}}`, `{"v":1,"d":{},"v":9}`, `{"v":-1}`, `{}`, `null`, `{"v":1,"d":}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		value, err := store.Decode[ve](text)
		if err == nil {
			return
		}
		if value != (ve{}) {
			t.Errorf("%q: error %v, and value %v", text, err, value)
		}
		if kind := api.KindOf(err); kind != api.Internal && kind != api.Unsupported {
			t.Errorf("%q: error of kind %q: %v", text, kind, err)
		}
	})
}
