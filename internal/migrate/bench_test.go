package migrate

import (
	"io"
	"sync"
	"testing"

	"polder/internal/model"
)

// BenchmarkStream copies through a session on loopback, both ends in this process.
func BenchmarkStream(b *testing.B) {
	for name, size := range map[string]int{"4KiB": 4 << 10, "64KiB": 64 << 10, "1MiB": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			here, there := benchPair(b)
			transfer(b, here, there, size)
		})
	}
	b.Run("files", func(b *testing.B) {
		here, there := benchPair(b)
		in, err := here.File()
		if err != nil {
			b.Fatal(err)
		}
		defer in.Close()
		out, err := there.File()
		if err != nil {
			b.Fatal(err)
		}
		defer out.Close()
		transfer(b, in, out, 64<<10)
	})
}

func benchPair(b *testing.B) (here, there model.Stream) {
	h := onLoopback(b)
	o := SessionOptions{Secret: NewSecret()}
	at := h.Open("op1", o.Secret, loopback, loopback)
	source := Connect("op1", h.dial, o)
	b.Cleanup(source.Close)
	b.Cleanup(at.Close)
	return both(b, source, at, "x")
}

func transfer(b *testing.B, w io.Writer, r io.Reader, size int) {
	data := make([]byte, size)
	b.SetBytes(int64(size))
	b.ResetTimer()
	var sender sync.WaitGroup
	sender.Go(func() {
		for range b.N {
			if _, err := w.Write(data); err != nil {
				b.Error(err)
				return
			}
		}
	})
	if _, err := io.CopyN(io.Discard, r, int64(size)*int64(b.N)); err != nil {
		b.Error(err)
	}
	sender.Wait()
}
