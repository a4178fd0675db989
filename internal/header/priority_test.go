package header

import (
	"net/http"
	"strings"
	"testing"
)

func TestPriority(t *testing.T) {
	for _, test := range []struct {
		lines []string
		want  int
	}{
		{nil, 3},
		{[]string{""}, 3},
		{[]string{"u=0"}, 0},
		{[]string{"u=7, i"}, 7},
		{[]string{"i=?0,u=1"}, 1},
		{[]string{"i, u=5;x=1;y"}, 5},
		{[]string{" u=2 "}, 2},
		{[]string{"u=1", "u=6"}, 6}, // the last one counts
		{[]string{"u=1", "i"}, 1},
		{[]string{`x="a, u=7", u=2`}, 2},
		{[]string{`u=2, x="a, u=7"`}, 2},
		{[]string{`x=(a "b, u=0" c), u=4`}, 4},
		{[]string{"X-y=1, u=0"}, 3}, // a key is lower case
		{[]string{"u=8"}, 3},
		{[]string{"u=-1"}, 3},
		{[]string{"u=00"}, 3},
		{[]string{"u=1.0"}, 3},
		{[]string{`u="1"`}, 3},
		{[]string{"u"}, 3},
		{[]string{"u=1, u=x"}, 3},
		{[]string{"u=1,"}, 3},
		{[]string{",u=1"}, 3},
		{[]string{"u = 1"}, 3},
		{[]string{"u=1 i"}, 3},
		{[]string{"u=1\x00"}, 3},
		{[]string{"U=1"}, 3},
		{[]string{"u=1, x=" + strings.Repeat("9", 300)}, 3},
		{[]string{"u=1, x=" + strings.Repeat("(", 30)}, 3},
		{[]string{"u=99999999999999999999"}, 3},
	} {
		if got := Priority(http.Header{"Priority": test.lines}); got != test.want {
			t.Errorf("%q: %d, want %d", test.lines, got, test.want)
		}
	}
}

func FuzzPriority(f *testing.F) {
	f.Add(`u=1, i, x="a\"b";p=(1)`)
	f.Fuzz(func(t *testing.T, text string) {
		got := Priority(http.Header{"Priority": {text}})
		if got < 0 || got > 7 {
			t.Errorf("%q: %d", text, got)
		}
		if again := Priority(http.Header{"Priority": {text, "u=6"}}); again != 6 && again != 3 {
			t.Errorf("%q and then u=6: %d", text, again)
		}
	})
}
