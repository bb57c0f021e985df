package vm

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"polder/api"
	"polder/internal/model"
)

var _ model.Follower = (*Model)(nil)

// moving is the mark of a VE on the move, at either end, until Keep, Enter or Stop takes it away. A daemon that comes to
// life in the middle learns from it what the VE is to be, which QEMU can't tell it.
type moving struct {
	Version int  `json:"version"`
	Target  bool `json:"target"`
	// Paused: the VE was paused before the move, and stays so.
	Paused bool `json:"paused"`
	// PostCopy: its memory follows it.
	PostCopy bool `json:"post_copy,omitempty"`
}

func movingFile(ve model.Spec) string { return ve.Dir + "/move.json" }
func keyDir(ve model.Spec) string     { return ve.Dir + "/key" }

// readMoving gives the mark; nil: the VE is not on the move.
func readMoving(ve model.Spec) (*moving, error) {
	var got moving
	err := readJSON(movingFile(ve), &got)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return &got, err
}

// arrived takes the mark and the key away.
func arrived(ve model.Spec) error {
	err := os.Remove(movingFile(ve))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(keyDir(ve)))
}

// writeKey makes the directory of QEMU's credentials, which only the VE's user reads. QEMU reads the file at each new
// connection.
func writeKey(ve model.Spec, secret []byte) error {
	if len(secret) < 16 {
		return fmt.Errorf("the key of a move has %d bytes, want 32", len(secret))
	}
	if err := os.RemoveAll(keyDir(ve)); err != nil {
		return err
	}
	if err := os.Mkdir(keyDir(ve), 0o700); err != nil {
		return err
	}
	for name, text := range map[string]string{"keys.psk": "qemu:" + hex.EncodeToString(secret) + "\n", "dh-params.pem": dhGroup} {
		path := keyDir(ve) + "/" + name
		if err := os.WriteFile(path, []byte(text), 0o400); err != nil {
			return err
		}
		if err := os.Chown(path, int(ve.IDBase), int(ve.IDBase)); err != nil {
			return err
		}
	}
	return os.Chown(keyDir(ve), int(ve.IDBase), int(ve.IDBase))
}

// dhGroup is the group ffdhe3072 of RFC 7919. Without one QEMU makes its own at each start of a server, which takes seconds.
const dhGroup = `-----BEGIN DH PARAMETERS-----
MIIBiAKCAYEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEfz9zeNVs7ZRkDW7w09N75nAI4YbRvydbmyQd62R0mkff3
7lmMsPrBhtkcrv4TCYUTknC0EwyTvEN5RPT9RFLi103TZPLiHnH1S/9croKrnJ32
nuhtK8UiNjoNq8Uhl5sN6todv5pC1cRITgq80Gv6U93vPBsg7j/VnXwl5B0rZsYu
N///////////AgEC
-----END DH PARAMETERS-----
`

// credentials are those of one end; endpoint is "server" or "client".
func credentials(ve model.Spec, endpoint string) map[string]any {
	return map[string]any{"qom-type": "tls-creds-psk", "id": moveKey, "dir": keyDir(ve), "endpoint": endpoint}
}

// logCarried is how much of the console's log goes along.
const logCarried = api.MiB

// logFrom reads a log from an offset on, at most the end that is carried, and says where it ended. A log that was cut
// meanwhile has nothing new.
func logFrom(path string, offset int64) (text []byte, end int64, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() <= offset {
		return nil, offset, err
	}
	from := max(offset, info.Size()-int64(logCarried))
	text, err = io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
	return text, info.Size(), err
}

func appendLog(path string, text []byte) error {
	if len(text) == 0 {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// readIfThere reads a file that not every VE has.
func readIfThere(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return data, err
}
