package store_test

import (
	"fmt"
	"strings"
	"testing"

	"polder/internal/store"
)

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		if err := open(b, dir).Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	table := store.NewTable[ve](opened(b), "ve", 1)
	value := ve{Name: "c1", State: strings.Repeat("x", 2000)}
	for b.Loop() {
		if _, err := table.Put(b.Context(), "c1", value); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	table := store.NewTable[ve](opened(b), "ve", 1)
	if _, err := table.Put(b.Context(), "c1", ve{Name: "c1"}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := table.Get(b.Context(), "c1"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkList1000(b *testing.B) {
	table := store.NewTable[ve](opened(b), "ve", 1)
	for i := range 1000 {
		if _, err := table.Put(b.Context(), fmt.Sprint("c", i), ve{Name: "c1", State: strings.Repeat("x", 2000)}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := table.List(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
