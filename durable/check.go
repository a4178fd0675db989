package durable

import (
	"context"
	"fmt"
	"time"

	"holdfast/durable/internal/wal"
	"holdfast/internal/store"
)

// A Report says what a folder holds.
type Report struct {
	Open    int // jobs that are queued, or run again at the next Open
	Started int // of these, the ones that were running
	Ended   int // jobs that have ended, of which some may be too old to be kept

	Records     int64 // of which each job has one to three
	Bytes       int64 // of the log
	First, Last time.Time
	Problems    []string // what is wrong, a line each, the first 100; empty: nothing is
}

// Check reads the log in a folder, which no process may own meanwhile, and changes no job.
// It blocks until the log is read or ctx ends. It returns an error if the log cannot be
// read at all; what is wrong within it is in the Report.
func Check(ctx context.Context, dir string) (Report, error) {
	steps := make(map[store.ID]store.Step)
	var strange int
	s, err := wal.Check(ctx, dir, func(record []byte) error {
		id, step, err := store.StepOf(record)
		switch {
		case err != nil:
			strange++
		case step == store.Discarded:
			delete(steps, id)
		case step == store.Again:
			steps[id] = step
		case steps[id] == store.Ended, step == store.Accepted && steps[id] != "": // a copy
		default:
			steps[id] = step
		}
		return nil
	})
	if err != nil {
		return Report{}, fmt.Errorf("durable: %w", err)
	}
	r := Report{Records: s.Records, Bytes: s.Bytes, First: s.First, Last: s.Last, Problems: s.Problems}
	if strange > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("%d records are not as this version writes them", strange))
	}
	for _, step := range steps {
		switch step {
		case store.Ended:
			r.Ended++
		case store.Started:
			r.Started++
			r.Open++
		default:
			r.Open++
		}
	}
	return r, nil
}
