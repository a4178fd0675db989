package e2e

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"holdfast"
)

// The tests in this file follow a trace through the queue (W3C Trace Context).

const (
	traceID     = "4bf92f3577b34da6a3ce929d0e0e4736"
	clientSpan  = "00f067aa0ba902b7"
	traceparent = "00-" + traceID + "-" + clientSpan + "-01"
)

// post sends a request of a trace and waits for the response to it.
func post(t *testing.T, url string) {
	t.Helper()
	r, err := http.NewRequest("POST", url, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Traceparent", traceparent)
	r.Header.Set("Tracestate", "vendor=opaque")
	r.Header.Set("Baggage", "tenant=seven")
	r.Header.Set("Prefer", "wait=30") // of Async, too
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("POST %s: %s", url, res.Status)
	}
}

// The server is not part of the trace: the upstream gets the headers as they came.
func TestTraceReachesTheUpstream(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.URL.Path+" "+strings.Join(slices.Concat(r.Header["Traceparent"], r.Header["Tracestate"], r.Header["Baggage"]), " "))
	}))
	defer upstream.Close()
	s := start(t, "-upstream", upstream.URL)
	post(t, "http://"+s.addr+"/sync/one")
	post(t, "http://"+s.addr+"/async/two")
	mu.Lock()
	defer mu.Unlock()
	const fields = traceparent + " vendor=opaque tenant=seven"
	if want := []string{"/one " + fields, "/two " + fields}; !slices.Equal(seen, want) {
		t.Errorf("the upstream got\n%q, want\n%q", seen, want)
	}
}

// otelhttp around the handler makes the work a span of the client's trace.
func TestTraceReachesTheHandler(t *testing.T) {
	d, err := holdfast.New(holdfast.Config{Workers: 1, Queue: 200})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Shutdown(context.Background())
	jobs, err := holdfast.NewJobs(d, holdfast.JobsConfig{})
	if err != nil {
		t.Fatal(err)
	}
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	traced := func(name string, h http.HandlerFunc) http.Handler {
		return otelhttp.NewHandler(h, name, otelhttp.WithTracerProvider(provider), otelhttp.WithPropagators(propagation.TraceContext{}))
	}
	report := func(w http.ResponseWriter, r *http.Request) {
		if got := trace.SpanContextFromContext(r.Context()).TraceID().String(); got != traceID {
			t.Errorf("%s: the context has the trace %s, want %s", r.URL, got, traceID)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("POST /sync", jobs.Sync(traced("sync", report)))
	mux.Handle("POST /queued", jobs.Queued(traced("queued", report)))
	mux.Handle("POST /async", jobs.Async(traced("async", report)))
	server := httptest.NewServer(mux)
	defer server.Close()
	for _, path := range []string{"/sync", "/queued", "/async"} {
		post(t, server.URL+path)
	}
	var names []string
	for _, span := range spans.GetSpans() {
		names = append(names, span.Name)
		if got := span.Parent.TraceID().String() + " " + span.Parent.SpanID().String(); got != traceID+" "+clientSpan {
			t.Errorf("the span %s belongs to %s, want it to be the client's child", span.Name, got)
		}
	}
	if len(names) != 3 {
		t.Errorf("the spans %q, want one for each request", names)
	}
}
