package patience

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPushback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pushback
		// refused asks a hundred times in a second and returns the least and the most.
		refused := func() (least, most int) {
			least = 1 << 30
			for range 100 {
				n := p.Refused()
				least, most = min(least, n), max(most, n)
				time.Sleep(10 * ms)
			}
			return least, most
		}
		if n := p.Refused(); n != 0 {
			t.Errorf("the first one is told %d s more", n)
		}
		refused()
		for _, want := range [][2]int{{0, 1}, {1, 2}, {2, 4}, {4, 8}, {8, 16}, {16, 32}, {16, 32}} {
			if least, most := refused(); least != want[0] || most != want[1] {
				t.Errorf("%d to %d s more, want %v", least, most, want)
			}
		}
		time.Sleep(20 * time.Second)
		if n := p.Refused(); n < 6 || n > 12 {
			t.Errorf("after 20 s without: %d s more, want 6 to 12", n)
		}
		time.Sleep(time.Hour)
		if n := p.Refused(); n != 0 {
			t.Errorf("after an hour: %d s more, want none", n)
		}
	})
}
