package holdfast

import "testing"

// FuzzOverflow: a text is the name of exactly one policy, or changes nothing.
func FuzzOverflow(f *testing.F) {
	for _, seed := range []string{"block", "reject", "drop-oldest", "", "Block", "BLOCK", " block", "block\x00", "drop_oldest", "dropoldest", "0", "Overflow(1)", "\xff\xfe", "\u212aeject"} {
		f.Add([]byte(seed), uint8(0))
		f.Add([]byte(seed), uint8(9))
	}
	f.Fuzz(func(t *testing.T, text []byte, before uint8) {
		o := Overflow(before)
		if err := o.UnmarshalText(text); err != nil {
			if o != Overflow(before) {
				t.Fatalf("%q: %v, and changed to %v", text, err, o)
			}
			return
		}
		back, err := o.MarshalText()
		if err != nil || string(back) != string(text) || o > DropOldest {
			t.Fatalf("%q gives %v, which gives %q, %v", text, o, back, err)
		}
	})
}
