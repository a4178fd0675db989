package admin_test

import (
	"context"
	"log"
	"net/http"

	"holdfast"
	"holdfast/admin"
)

// A page for the operator of a pool, on a listener that only this machine reaches.
func Example() {
	d, err := holdfast.New(holdfast.Config{Workers: 8, Queue: 200})
	if err != nil {
		log.Fatal(err)
	}
	operator := admin.New(admin.Config{Dispatcher: d})
	go operator.Run(context.Background())
	go func() { log.Fatal(http.ListenAndServe("127.0.0.1:8100", operator)) }()

	// … and d.Submit, or holdfast.NewJobs(d, …), as usual.
}
