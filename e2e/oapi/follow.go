//go:build generated

// Oapi follows a job with the client that oapi-codegen generates into this package,
// and prints its response. The client is written by the test that runs it.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	_ "github.com/oapi-codegen/runtime" // what the client imports, for go mod tidy
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := NewClientWithResponses(os.Args[1])
	check(err)
	accepted, err := c.QueueWorkWithResponse(ctx, &QueueWorkParams{}, Sleep{SleepTime: 1})
	check(err)
	if accepted.JSON202 == nil {
		log.Fatalf("POST /bbb: %s %s", accepted.Status(), accepted.Body)
	}
	id, wait := accepted.JSON202.Id, "wait=20"
	job, err := c.ReadJobWithResponse(ctx, id, &ReadJobParams{Prefer: &wait})
	check(err)
	if job.JSON200 == nil || job.JSON200.State != "done" {
		log.Fatalf("GET /jobs/{id}: %s %s", job.Status(), job.Body)
	}
	response, err := c.ReadResponseWithResponse(ctx, id, &ReadResponseParams{})
	check(err)
	if response.JSON200 == nil {
		log.Fatalf("GET /jobs/{id}/response: %s %s", response.Status(), response.Body)
	}
	// What curl -d sends by itself is described too.
	form, err := c.WorkNowWithBodyWithResponse(ctx, &WorkNowParams{}, "application/x-www-form-urlencoded", strings.NewReader(`{"sleep_time":0}`))
	check(err)
	if form.JSON200 == nil {
		log.Fatalf("POST /aaa: %s %s", form.Status(), form.Body)
	}
	fmt.Printf("{\"result\":{\"sleep_time\":%d}}\n", response.JSON200.SleepTime)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
