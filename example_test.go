package holdfast_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
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
	}) // an error at once if 104 jobs are there already
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
