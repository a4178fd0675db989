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

// Parse returns the value with a name, and whether there is one.
func Parse[T ~uint8](text []byte, names []string) (T, bool) {
	i := slices.Index(names, string(text))
	return T(max(i, 0)), i >= 0
}
