// Package flags provides flag values that parse strictly and whose errors say what
// is allowed.
package flags

import (
	"errors"
	"strconv"
	"time"
)

// A Boolean accepts only true and false, or a flag without a value. Package flag's
// own boolean accepts t and 1 too.
type Boolean bool

func (b *Boolean) String() string { return strconv.FormatBool(bool(*b)) }

// Set parses s. On an error it changes nothing.
func (b *Boolean) Set(s string) error {
	if s != "true" && s != "false" {
		return errors.New("want true or false")
	}
	*b = s == "true"
	return nil
}

// IsBoolFlag tells package flag that the flag needs no value.
func (b *Boolean) IsBoolFlag() bool { return true }

// A Duration sets D to a duration of at least Least. Want describes the allowed
// values in errors.
type Duration struct {
	D     *time.Duration
	Want  string
	Least time.Duration
}

func (v *Duration) String() string {
	if v.D == nil {
		return ""
	}
	return v.D.String()
}

// Set parses s. On an error it changes nothing.
func (v *Duration) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < v.Least {
		return errors.New("want " + v.Want)
	}
	*v.D = d
	return nil
}
