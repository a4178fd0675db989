package plan_test

import (
	"fmt"
	"log"
	"time"

	"holdfast/plan"
)

// A hundred requests arrive per second and take 50 ms each. In bursts of two
// seconds, five times as many arrive. Clients give up after one second.
func Example() {
	p, err := plan.For(plan.Load{
		Rate:     100,
		Service:  50 * time.Millisecond,
		Burst:    5,
		BurstFor: 2 * time.Second,
		Deadline: time.Second,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(p.Workers, "workers and a queue of", p.Queue)
	fmt.Printf("utilisation %.0f %%; a burst's backlog clears in %.1f s\n", 100*p.Utilisation, p.Drain)
	// Output:
	// 21 workers and a queue of 260
	// utilisation 24 %; a burst's backlog clears in 0.5 s
}

// The highest rate is below the workers' capacity, since few requests may wait.
func ExampleFor_given() {
	p, err := plan.For(plan.Load{Service: time.Second, Workers: 100, Queue: 200})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.1f requests per second, at a capacity of %.0f\n", p.MaxRate, p.Capacity)
	// Output:
	// 89.6 requests per second, at a capacity of 100
}

func ExampleErlangC() {
	// Ten requests arrive during one mean service time, and there are 14 workers.
	fmt.Printf("%.1f %% of the requests wait\n", 100*plan.ErlangC(14, 10))
	// Output:
	// 17.4 % of the requests wait
}
