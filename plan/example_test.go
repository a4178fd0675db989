package plan_test

import (
	"fmt"
	"log"
	"time"

	"holdfast/plan"
)

// A hundred requests arrive in a second and take 50 ms each. At times five times
// as many arrive for two seconds, and clients give up after one.
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
	fmt.Printf("used to %.0f %%, and idle again %.1f s after a burst\n", 100*p.Utilisation, p.Drain)
	// Output:
	// 21 workers and a queue of 260
	// used to 24 %, and idle again 0.5 s after a burst
}

// Given workers hold less than they can do, since few requests shall wait.
func ExampleFor_given() {
	p, err := plan.For(plan.Load{Service: time.Second, Workers: 100, Queue: 200})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.1f requests a second of at most %.0f\n", p.MaxRate, p.Capacity)
	// Output:
	// 89.6 requests a second of at most 100
}

func ExampleErlangC() {
	// Ten requests arrive in the time of one service, and there are 14 workers.
	fmt.Printf("%.1f %% of the requests wait\n", 100*plan.ErlangC(14, 10))
	// Output:
	// 17.4 % of the requests wait
}
