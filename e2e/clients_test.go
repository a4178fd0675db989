package e2e

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"holdfast/internal/proctest"
)

// oapiCodegen is run at its version, like the tools of the Makefile, so that what it
// is made of stays out of go.mod.
const oapiCodegen = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2"

// packages installs what package-lock.json names, once. It needs Node 20.19 or newer.
var packages = sync.OnceValue(func() error {
	cmd := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = "clients"
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.New(string(out))
	}
	return nil
})

// node runs a command of clients/, or a file of it, and returns what it prints.
func node(t *testing.T, name string, args ...string) string {
	t.Helper()
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		if os.Getenv("HOLDFAST_REQUIRE_SERVICES") != "" {
			t.Fatalf("%s is not installed", program)
		}
		t.Skipf("%s is not installed", program)
	}
	if err := packages(); err != nil {
		t.Fatalf("npm ci: %v", err)
	}
	if !strings.Contains(name, ".") {
		bin, err := filepath.Abs(filepath.Join("clients", "node_modules", ".bin", name))
		if err != nil {
			t.Fatal(err)
		}
		return run(t, "clients", bin, args...)
	}
	return run(t, "clients", "node", append([]string{name}, args...)...)
}

// run returns what a command prints that must succeed.
func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd, err, out, said.String())
	}
	return string(out)
}

// behind starts a server with a public URL, and returns that: some clients take no
// URL that is relative.
func behind(t *testing.T) string {
	t.Helper()
	var server atomic.Pointer[url.URL] // known when the front is
	front := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(server.Load()) }})
	t.Cleanup(front.Close)
	server.Store(&url.URL{Scheme: "http", Host: start(t, "-public-url", front.URL, "-workers", "1").addr})
	return front.URL
}

func TestDescriptionLints(t *testing.T) {
	t.Parallel()
	t.Log(node(t, "redocly", "lint", "--format=stylish", filepath.Join("..", descriptionFile)))
}

// A client that is generated from the description follows a job to its response.
func TestGeneratedClients(t *testing.T) {
	proctest.Build(t)
	const want = `{"result":{"sleep_time":1}}`
	t.Run("oapi-codegen", func(t *testing.T) {
		t.Parallel()
		client := filepath.Join(t.TempDir(), "client.go")
		run(t, ".", "go", "run", oapiCodegen, "-generate", "types,client", "-package", "main", "-o", client, descriptionFile)
		here, err := filepath.Abs("oapi")
		if err != nil {
			t.Fatal(err)
		}
		overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(here, "client.go"): client}})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "overlay.json")
		if err := os.WriteFile(file, overlay, 0o666); err != nil {
			t.Fatal(err)
		}
		if got := run(t, ".", "go", "run", "-tags", "generated", "-overlay", file, "./oapi", "http://"+start(t).addr); strings.TrimSpace(got) != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
	t.Run("openapi-typescript", func(t *testing.T) {
		t.Parallel()
		// The program finds its packages from where it is.
		node(t, "openapi-typescript", filepath.Join("..", descriptionFile), "-o", "node_modules/.follow/api.d.ts")
		text, err := os.ReadFile("clients/follow.ts")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("clients/node_modules/.follow/follow.ts", text, 0o666); err != nil {
			t.Fatal(err)
		}
		node(t, "tsc", "--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom,dom.iterable", "node_modules/.follow/follow.ts")
		if got := node(t, "node_modules/.follow/follow.js", "http://"+start(t).addr); strings.TrimSpace(got) != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
}

// Clients for long-running operations, which have never heard of this server, follow
// a job to its response, at the pace that Retry-After tells them: by themselves they
// would ask again after 30 s.
func TestLongRunningOperations(t *testing.T) {
	proctest.Build(t)
	t.Run("core-lro", func(t *testing.T) {
		t.Parallel()
		var got struct {
			Result map[string]int
			Seen   []string
		}
		out := node(t, "lro.mjs", behind(t), `{"sleep_time":2}`)
		if err := json.Unmarshal([]byte(out), &got); err != nil || got.Result["sleep_time"] != 2 || !slices.Contains(got.Seen, "running") {
			t.Errorf("%s, want the response of /aaa, and a job that was seen to run", out)
		}
	})
	t.Run("azcore", func(t *testing.T) {
		t.Parallel()
		azcore(t, behind(t))
	})
}

func azcore(t *testing.T, url string) {
	pipeline := runtime.NewPipeline("e2e", "v0.0.0", runtime.PipelineOptions{}, nil)
	begin := func() (*runtime.Poller[map[string]int], string) {
		r, err := runtime.NewRequest(t.Context(), http.MethodPost, url+"/bbb")
		if err != nil {
			t.Fatal(err)
		}
		if err := runtime.MarshalAsJSON(r, map[string]int{"sleep_time": 2}); err != nil {
			t.Fatal(err)
		}
		answer, err := pipeline.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		poller, err := runtime.NewPoller[map[string]int](answer, pipeline, nil)
		if err != nil {
			t.Fatal(err)
		}
		return poller, answer.Header.Get("Location")
	}
	began := time.Now()
	poller, _ := begin()
	result, err := poller.PollUntilDone(t.Context(), nil)
	if err != nil || result["sleep_time"] != 2 {
		t.Errorf("the result is %v, %v; want that of /aaa", result, err)
	}
	t.Logf("a job of 2 s took %v", time.Since(began))

	poller, job := begin()
	r, err := runtime.NewRequest(t.Context(), http.MethodDelete, job)
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := pipeline.Do(r); err != nil || answer.StatusCode >= 300 {
		t.Fatalf("DELETE %s: %v, %v", job, answer, err)
	}
	if result, err := poller.PollUntilDone(t.Context(), nil); err == nil {
		t.Errorf("the result of a job that was canceled is %v, want an error", result)
	}
}
