// Package enum gives the values of enumerated types their names.
package enum

import (
	"fmt"
	"slices"
)

// String returns the name of v, or kind and the number of a value that has no name.
func String[T ~uint8](v T, kind string, names []string) string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("%s(%d)", kind, uint8(v))
}

// Set sets v to the value with a name, and reports whether there is one.
func Set[T ~uint8](v *T, text []byte, names []string) bool {
	i := slices.Index(names, string(text))
	if i >= 0 {
		*v = T(i)
	}
	return i >= 0
}
