package budget

import (
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// unknown is how much memory a machine is taken to have that does not say.
const unknown = 2 << 30

// Default returns half of the memory that the process may use: what the machine has, or
// what its control group or GOMEMLIMIT allows if that is less. The other half is for
// what is not held for clients, and for the garbage collector to work with.
func Default() int64 {
	return share(debug.SetMemoryLimit(-1), func(name string) []byte {
		text, _ := os.ReadFile(name) // where there is no such file, there is no such limit
		return text
	})
}

func share(goLimit int64, read func(name string) []byte) int64 {
	total := int64(unknown)
	for line := range strings.Lines(string(read("/proc/meminfo"))) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemTotal:" {
			if kib, err := strconv.ParseInt(f[1], 10, 53); err == nil && kib > 0 {
				total = kib << 10
			}
		}
	}
	return max(min(total, goLimit, groupLimit(read))/2, 1)
}

// groupLimit returns the least limit of the process's control groups, of the second
// version and of the first. A group's limit holds for those below it too.
func groupLimit(read func(name string) []byte) int64 {
	least := int64(math.MaxInt64)
	for line := range strings.Lines(string(read("/proc/self/cgroup"))) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) < 3 {
			continue
		}
		root, file := "/sys/fs/cgroup", "memory.max"
		switch {
		case f[0] == "0" && f[1] == "":
		case strings.Contains(","+f[1]+",", ",memory,"):
			root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for group := path.Clean("/" + f[2]); ; group = path.Dir(group) {
			text := strings.TrimSpace(string(read(path.Join(root, group, file))))
			if n, err := strconv.ParseInt(text, 10, 64); err == nil && n > 0 { // else it is max, or not there
				least = min(least, n)
			}
			if group == "/" {
				break
			}
		}
	}
	return least
}
