package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// printMachine says what the figures were measured on, and who does not take part.
func (c *comparison) printMachine(out io.Writer, missing []string) error {
	const syncs = 500
	took, err := syncTimes(c.dir, syncs)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s %s/%s, %s%s. %s of %v.\n", runtime.Version(), runtime.GOOS, runtime.GOARCH,
		count(runtime.NumCPU(), "core"), processor(), count(c.options.rounds, "round"), c.lasts)
	fmt.Fprintf(out, "\nThe data lies in %s, on %s. An fsync there, after %d bytes, takes %.3f ms, and in one of 100 cases more than %.3f ms.\n",
		c.dir, fileSystem(c.dir), len(body), milliseconds(percentile(took, 0.5)), milliseconds(percentile(took, 0.99)))
	if c.quick {
		fmt.Fprint(out, "\nThis is the quick form: the figures mean nothing.\n")
	}
	if text := versions(); text != "" {
		fmt.Fprintf(out, "\n%s.\n", text)
	}
	for _, line := range missing {
		fmt.Fprintf(out, "\nSkipped: %s.\n", line)
	}
	return nil
}

// syncTimes returns the sorted times of n fsyncs, before each of which as many bytes as
// a job has are appended to a new file in dir.
func syncTimes(dir string, n int) ([]time.Duration, error) {
	f, err := os.CreateTemp(dir, "sync-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	took := make([]time.Duration, n)
	for i := range took {
		if _, err := f.WriteString(body); err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := f.Sync(); err != nil {
			return nil, err
		}
		took[i] = time.Since(begin)
	}
	slices.Sort(took)
	return took, nil
}

// processor returns the name of the processor in brackets, or "" where the system does
// not tell.
func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return " (" + strings.TrimSpace(value) + ")"
		}
	}
	return ""
}

// fileSystem returns the type of the file system that dir is on, and its device.
func fileSystem(dir string) string {
	const unknown = "an unknown file system"
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return unknown
	}
	defer f.Close()
	longest, found := -1, unknown
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text()) // device, folder, type, …
		if len(fields) < 3 {
			continue
		}
		within := strings.HasPrefix(dir+"/", strings.TrimSuffix(fields[1], "/")+"/")
		if within && len(fields[1]) >= longest { // a later one covers an earlier one
			longest, found = len(fields[1]), fields[2]+" ("+fields[0]+")"
		}
	}
	return found
}

// versions returns what the servers say that take part.
func versions() string {
	var all []string
	if path, err := find("redis-server"); err == nil {
		all = append(all, firstLine(path))
	}
	if dir, found := postgresPrograms(); found {
		all = append(all, firstLine(filepath.Join(dir, "postgres")))
	}
	return strings.Join(all, "; ")
}

func firstLine(path string) string {
	text, err := exec.Command(path, "--version").Output()
	if err != nil {
		return path + ": " + err.Error()
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(line)
}

// A cpu says how much time of the processors has been used since the machine has begun,
// in seconds.
type cpu struct {
	known                bool
	busy, stolen, byThis float64
}

// cpuTimes returns the times up to this moment, where the system tells. Those of a
// process count as ours when it has ended and was waited for.
func cpuTimes() (c cpu) {
	const ticks = 100 // a second, in /proc/stat
	text, err := os.ReadFile("/proc/stat")
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 9 || fields[0] != "cpu" {
		return c
	}
	for i, f := range fields[1:9] { // user, nice, system, idle, iowait, irq, softirq, steal
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return cpu{}
		}
		switch i {
		case 3, 4:
		case 7:
			c.stolen = n / ticks
		default:
			c.busy += n / ticks
		}
	}
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var used syscall.Rusage
		if err := syscall.Getrusage(who, &used); err != nil {
			return cpu{}
		}
		c.byThis += time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
	}
	c.known = true
	return c
}

// since returns a sentence about who else has used the machine, from c to now.
func (c cpu) since(now cpu, lasted time.Duration) string {
	if !c.known || !now.known || lasted <= 0 {
		return ""
	}
	others := max(0, now.busy-c.busy-(now.byThis-c.byThis)) / lasted.Seconds()
	return fmt.Sprintf("Other programs, the kernel's own work among them, used %.2f cores, and %.2f cores were taken by other machines on the same host. ",
		others, (now.stolen-c.stolen)/lasted.Seconds())
}
