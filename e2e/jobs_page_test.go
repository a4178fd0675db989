package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// The tests in this file drive the page of jobs in a browser.

// submit sends a job of some seconds and returns its id.
func (w *watched) submit(seconds int) string {
	w.t.Helper()
	res, err := http.Post("http://"+w.addr+"/bbb", "application/json", strings.NewReader(fmt.Sprintf(`{"sleep_time":%d}`, seconds)))
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	var job struct{ ID string }
	if err := json.NewDecoder(res.Body).Decode(&job); err != nil || job.ID == "" {
		w.t.Fatalf("%s: %v", res.Status, err)
	}
	return job.ID
}

// says is an expression for whether an element contains a text.
func says(id, text string) string {
	return fmt.Sprintf("document.getElementById(%q).textContent.includes(%q)", id, text)
}

const rows = `document.querySelectorAll("#rows tr").length`

// prefixed serves what is at addr below /ops/ with nginx, in its default
// configuration, and returns its URL.
func prefixed(t *testing.T, addr string) string {
	t.Helper()
	binary, err := exec.LookPath("nginx")
	if err != nil {
		binary, err = exec.LookPath("/usr/sbin/nginx")
	}
	if err != nil {
		if os.Getenv("HOLDFAST_REQUIRE_SERVICES") != "" {
			t.Fatal("nginx is not installed")
		}
		t.Skip("nginx is not installed (on Debian: apt-get install nginx)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "nginx.conf")
	text := `daemon off; pid ` + dir + `/pid; error_log stderr; events {}
http {
	access_log off;
	client_body_temp_path ` + dir + `/body; proxy_temp_path ` + dir + `/proxy; fastcgi_temp_path ` + dir + `/f; uwsgi_temp_path ` + dir + `/u; scgi_temp_path ` + dir + `/s;
	server {
		listen ` + front + `;
		location /ops/ { proxy_pass http://` + addr + `/; }
	}
}`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o755) // for the workers, which may run as another user
	cmd := exec.Command(binary, "-p", dir, "-e", "stderr", "-c", config)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		if t.Failed() {
			t.Logf("nginx: %s", &log)
		}
	})
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", front)
		if err == nil {
			conn.Close()
			return "http://" + front + "/ops/"
		}
		if time.Now().After(end) {
			t.Fatalf("nginx does not listen: %v\n%s", err, &log)
		}
	}
}

// Below a prefix both pages work as they do without one: files, events, changes, and
// the way from one to the other.
func TestPagesBelowAPrefix(t *testing.T) {
	w := watch(t, "-workers", "1", "-queue", "50")
	url := prefixed(t, w.admin)
	p := browse(t)
	p.open(url)
	p.burst("/bbb", 3, 0)
	p.until(number("accepted") + " === 3 && " + number("succeeded") + " === 3")
	p.set("workers-input", "2")
	p.click("apply")
	p.until(says("controls-status", "2 workers"))
	if n := w.stats().Dispatcher.Workers; n != 2 {
		t.Errorf("the server has %d workers, want 2", n)
	}

	p.do(chromedp.Navigate(evaluate[string](p, `document.querySelector("#pages a:last-child").href`)))
	p.until(`location.pathname === "/ops/jobs.html" && ` + rows + " === 3")
	id := w.submit(600)
	p.set("find-id", id)
	p.click("find-send")
	p.until(says("job-state", "running"))
	p.click("cancel")
	p.until(says("job-status", "Told to stop") + " || " + says("job-status", "Canceled")) // its handler may have noticed already
	p.until(says("job-state", "canceled"))
	p.do(chromedp.Navigate(evaluate[string](p, `document.querySelector("nav a").href`)))
	p.until(`location.pathname === "/ops/" && document.body.dataset.connection === "live" && ` + number("canceled") + " === 1")
}

// The operator sees the jobs, finds one by its id or the part that a log has, reads
// what became of it, and cancels.
func TestJobsPage(t *testing.T) {
	w := watch(t, "-workers", "2", "-queue", "50")
	done := w.submit(0)
	p := browse(t)
	p.do(chromedp.Navigate("http://" + w.admin + "/jobs.html"))
	p.until(rows + " === 1")
	first, second, queued := w.submit(600), w.submit(600), w.submit(600)
	p.until(rows + " === 4") // by itself
	for _, want := range []struct {
		state string
		n     int
	}{{"queued", 1}, {"running", 2}, {"done", 1}, {"failed", 0}} {
		evaluate[chromedp.Void](p, fmt.Sprintf(`(() => {
			const field = document.getElementById("filter-state");
			field.value = %q;
			field.dispatchEvent(new Event("change", {bubbles: true}));
		})()`, want.state))
		p.until(fmt.Sprintf(`%s === %d && [...document.querySelectorAll("#rows .state")].every(e => e.textContent === %q)`, rows, want.n, want.state))
	}
	p.until(says("list-status", "There are no failed jobs."))

	// By the first letters, as a log has them, and in small ones.
	p.set("find-id", strings.ToLower(done[:8]))
	p.click("find-send")
	p.until(says("job-id", done) + " && " + says("job-state", "done") + " && " + rows + " === 1")
	p.until(says("response-head", "200 OK\n") + " && " + says("response-head", "Content-Length: 17") + " && !document.getElementById('response').hidden")
	if evaluate[bool](p, "document.getElementById('cancel').checkVisibility()") {
		t.Error("a job that is done can be canceled")
	}
	p.picture("jobs")

	// By a link, and by the whole id.
	p.do(chromedp.Navigate("http://" + w.admin + "/jobs.html#" + second))
	p.until(says("job-id", second) + " && " + says("job-state", "running"))
	p.set("find-id", "http://somewhere/queue/jobs/"+queued+"/response")
	p.click("find-send")
	p.until(says("job-state", "queued") + " && " + says("job-id", queued))
	p.click("cancel")
	p.until(says("job-status", "Canceled.") + " && " + says("job-state", "canceled") + " && " + says("job-why", "The job was canceled."))
	if log := w.Text(); !strings.Contains(log, "job canceled") || strings.Contains(log, queued) {
		t.Errorf("the log: %s", log)
	}

	// What comes too late is told.
	p.expectTrouble(true)
	p.set("find-id", first)
	p.click("find-send")
	p.until(says("job-id", first) + " && " + says("job-state", "running"))
	evaluate[chromedp.Void](p, "document.getElementById('follow').click()")
	r, err := http.NewRequest("DELETE", "http://"+w.admin+"/jobs/"+first, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	p.set("find-id", "AAAAAAAAAAAAAAAAAAAAAAAAAA")
	p.click("find-send")
	p.until(says("find-error", "There is no such job") + " && document.getElementById('job').hidden")
	p.set("find-id", "1")
	p.click("find-send")
	p.until(says("find-error", "An id has 26 letters"))
}

// browseJobs opens the page of jobs on a server that has some, with one that is
// queued beside the list.
func browseJobs(t *testing.T, actions ...chromedp.Action[chromedp.Void]) *page {
	w := watch(t, "-workers", "2", "-queue", "50")
	for range 5 {
		w.submit(0)
	}
	for range 7 {
		w.submit(600)
	}
	id := w.submit(600)
	p := browse(t)
	p.do(actions...)
	p.do(chromedp.Navigate("http://" + w.admin + "/jobs.html#" + id))
	p.until(rows + " === 13 && " + says("job-state", "queued"))
	return p
}

func TestJobsPageInTheDark(t *testing.T) {
	p := browseJobs(t)
	light := evaluate[string](p, "getComputedStyle(document.body).backgroundColor")
	feature := &emulation.MediaFeature{Name: "prefers-color-scheme", Value: "dark"}
	if _, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{feature}}); err != nil {
		t.Fatal(err)
	}
	if dark := evaluate[string](p, "getComputedStyle(document.body).backgroundColor"); dark == light {
		t.Errorf("the page is %s in the dark too", dark)
	}
	p.picture("jobs-dark")
}

// The list and the job fit on a phone, whatever a client has put into its request
// line. It is shown as text.
func TestJobsPageOnAPhone(t *testing.T) {
	p := browseJobs(t, chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile, chromedp.EmulateTouch))
	p.picture("jobs-phone")
	// Again and again, since an answer that is under way would replace the jobs.
	p.until(`(() => {
		document.getElementById("follow").checked = false;
		for (const j of jobs) j.request = {method: "POST", target: "/bbb"};
		shown = jobs[0];
		shown.request = {method: "POST", target: "/reports?of=<img src=x>" + "w".repeat(300), route: "POST /reports"};
		renderList(Date.now());
		renderJob(Date.now());
		return ` + says("job-request", "POST /reports?of=<img src=x>www") + " && " + says("job-route", "POST /reports") + `
			&& document.querySelectorAll("#rows tr")[1].textContent.includes("POST /bbb");
	})()`)
	wide := evaluate[[]string](p, `[...document.querySelectorAll("body *")]
		.filter(e => e.getBoundingClientRect().right > 361).map(e => e.tagName + "#" + e.id)`)
	if len(wide) > 0 {
		t.Errorf("wider than the screen: %s", wide)
	}
	if high := evaluate[int](p, `Math.round(document.querySelector("#rows tr").getBoundingClientRect().height)`); high > 60 {
		t.Errorf("a long request takes %d pixels of the list", high)
	}
}
