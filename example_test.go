package holdfast_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"holdfast"
)

// The whole of a program: a dispatcher, the jobs on it, a server with a handler that
// answers at once and with the resource by which clients follow their jobs, and a stop
// in order.
func Example() {
	dispatcher, err := holdfast.New(holdfast.Config{
		Workers:    4,                // run at once
		Queue:      100,              // wait for a worker
		Overflow:   holdfast.Reject,  // beyond that: 503 with Retry-After
		JobTimeout: 10 * time.Second, // of each job
	})
	if err != nil {
		log.Fatal(err)
	}
	jobs, err := holdfast.NewJobs(dispatcher, holdfast.JobsConfig{Path: "/jobs/"})
	if err != nil {
		log.Fatal(err)
	}

	mux := http.NewServeMux()
	mux.Handle("POST /shout", jobs.Async(shout)) // Queued, if clients wait for the response
	mux.Handle("/jobs/", jobs)                   // what the Location of a 202 points to
	server := &http.Server{Handler: mux}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	// A client.
	url := "http://" + listener.Addr().String()
	accepted, err := http.Post(url+"/shout", "text/plain", strings.NewReader("hold fast"))
	if err != nil {
		log.Fatal(err)
	}
	accepted.Body.Close()
	fmt.Println(accepted.Status)

	// The stop, as on a signal. The dispatcher comes first: while it drains the queue,
	// the listener is open, and clients can read how their jobs have ended.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	report, err := dispatcher.Shutdown(ctx)
	fmt.Println(report.Running, "cut off,", len(report.NeverStarted), "never started,", err)

	response, err := http.Get(url + accepted.Header.Get("Location") + "/response")
	if err != nil {
		log.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	response.Body.Close()
	fmt.Println(response.Status, string(text), err)

	fmt.Println(server.Shutdown(ctx), <-served)
	// Output:
	// 202 Accepted
	// 0 cut off, 0 never started, <nil>
	// 200 OK HOLD FAST <nil>
	// <nil> http: Server closed
}

// shout is a handler as it may be found anywhere; it knows nothing of jobs.
var shout = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprint(w, strings.ToUpper(string(text)))
})

// A request is accepted at once, and its response is there to be read when a
// worker has made it.
func ExampleJobs_Async() {
	d, err := holdfast.New(holdfast.Config{Workers: 4})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Shutdown(context.Background())
	jobs, err := holdfast.NewJobs(d, holdfast.JobsConfig{})
	if err != nil {
		log.Fatal(err)
	}

	mux := http.NewServeMux()
	mux.Handle("POST /shout", jobs.Async(shout))
	mux.Handle("/jobs/", jobs)
	server := httptest.NewServer(mux)
	defer server.Close()

	accepted, err := http.Post(server.URL+"/shout", "text/plain", strings.NewReader("hold fast"))
	if err != nil {
		log.Fatal(err)
	}
	accepted.Body.Close()
	fmt.Println(accepted.Status)

	request, err := http.NewRequest("GET", server.URL+accepted.Header.Get("Location")+"/response", nil)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Prefer", "wait=10") // or ask again until it is no longer 202
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	fmt.Println(response.Status, string(text), err)
	// Output:
	// 202 Accepted
	// 200 OK HOLD FAST <nil>
}

// The handler is called as ever, unless the client prefers not to wait for it.
func ExampleJobs_Sync() {
	d, err := holdfast.New(holdfast.Config{Workers: 4})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Shutdown(context.Background())
	jobs, err := holdfast.NewJobs(d, holdfast.JobsConfig{})
	if err != nil {
		log.Fatal(err)
	}

	mux := http.NewServeMux()
	mux.Handle("POST /shout", jobs.Sync(shout))
	mux.Handle("/jobs/", jobs)
	server := httptest.NewServer(mux)
	defer server.Close()

	for _, prefer := range []string{"", "respond-async"} {
		request, err := http.NewRequest("POST", server.URL+"/shout", strings.NewReader("hold fast"))
		if err != nil {
			log.Fatal(err)
		}
		request.Header.Set("Prefer", prefer)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			log.Fatal(err)
		}
		response.Body.Close()
		fmt.Printf("%s %q\n", response.Status, response.Header.Get("Preference-Applied"))
	}
	// Output:
	// 200 OK ""
	// 202 Accepted "respond-async"
}

// Any number of requests may come at once; two at a time get to the handler, the
// others wait for their turn and then get its response.
func ExampleJobs_Queued() {
	d, err := holdfast.New(holdfast.Config{Workers: 2, Queue: 100})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Shutdown(context.Background())
	jobs, err := holdfast.NewJobs(d, holdfast.JobsConfig{})
	if err != nil {
		log.Fatal(err)
	}

	server := httptest.NewServer(jobs.Queued(shout))
	defer server.Close()

	response, err := http.Post(server.URL, "text/plain", strings.NewReader("hold fast"))
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	fmt.Println(response.Status, string(text), err)
	// Output:
	// 200 OK HOLD FAST <nil>
}
