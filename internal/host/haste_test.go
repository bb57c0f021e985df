package host

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestHaste(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sets []bool
		h := newHaste()
		h.set = func(hurry bool) { sets = append(sets, hurry) }
		one, two := h.begin(), h.begin()
		one()
		synctest.Wait()
		two()
		three := h.begin() // before the second has lingered
		synctest.Wait()
		if want := []bool{true}; !slices.Equal(sets, want) {
			t.Errorf("while one is in a hurry: %v, want %v", sets, want)
		}
		three()
		<-time.After(2 * linger)
		synctest.Wait()
		if want := []bool{true, false}; !slices.Equal(sets, want) {
			t.Errorf("once none is any more: %v, want %v", sets, want)
		}
	})
}
