package holdfast_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"holdfast"
)

func Example() {
	d, err := holdfast.New(holdfast.Config{Workers: 4, Queue: 100})
	if err != nil {
		log.Fatal(err)
	}
	job, err := d.Submit(context.Background(), func(ctx context.Context) error {
		time.Sleep(10 * time.Millisecond) // the work
		return nil
	}, holdfast.Reject) // an error at once if 104 jobs are there already
	if err != nil {
		log.Fatal(err)
	}
	err = job.Wait(context.Background())
	fmt.Println(job.State(), err)

	report, err := d.Shutdown(context.Background()) // runs what is queued to its end
	fmt.Println(len(report.NeverStarted), err)
	// Output:
	// succeeded <nil>
	// 0 <nil>
}
