// Package flags has values of flags that are read strictly and say what they want.
package flags

import (
	"errors"
	"strconv"
	"time"
)

// A Boolean is set by true and false alone, or by a flag without a value. Package
// flag's own takes t and 1 too.
type Boolean bool

func (b *Boolean) String() string { return strconv.FormatBool(bool(*b)) }

// Set sets the Boolean from its text; any other is an error and changes nothing.
func (b *Boolean) Set(s string) error {
	if s != "true" && s != "false" {
		return errors.New("want true or false")
	}
	*b = s == "true"
	return nil
}

// IsBoolFlag lets the flag stand without a value.
func (b *Boolean) IsBoolFlag() bool { return true }

// A Duration sets D to what is at least Least. Want says what that is.
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

// Set sets D from its text; a text that is no such duration is an error and changes
// nothing.
func (v *Duration) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < v.Least {
		return errors.New("want " + v.Want)
	}
	*v.D = d
	return nil
}
