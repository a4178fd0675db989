package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"image"
	"image/png"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"holdfast/internal/proctest"
)

// The tests in this file drive the dashboard in a browser.

var screenshots = flag.String("screenshots", "", "write screenshots of the dashboard to this `folder`")

// A page is a tab of a browser.
type page struct {
	t   *testing.T
	ctx context.Context

	mu    sync.Mutex
	wrong []string // complaints of the browser
	lost  bool     // the server is down, so the browser may complain
}

// browse opens a browser, which ends with the test. The test fails if the browser
// complains about anything, such as a script that the page's policy forbids.
func browse(t *testing.T, flags ...chromedp.ExecAllocatorOption) *page {
	t.Helper()
	var binary string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			binary = path
			break
		}
	}
	if binary == "" {
		if os.Getenv("HOLDFAST_REQUIRE_SERVICES") != "" {
			t.Fatal("Chromium is not installed")
		}
		t.Skip("Chromium is not installed (on Debian: apt-get install chromium)")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(binary), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("hide-scrollbars", true),
		chromedp.Flag("force-prefers-reduced-motion", true)) // a screenshot during a transition shows a mixed state
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), append(options, flags...)...)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 8*time.Minute)
	t.Cleanup(cancel)
	p := &page{t: t}
	p.ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	messages := chromedp.Console(p.ctx)
	listened := make(chan struct{})
	go func() {
		defer close(listened)
		for m, err := range messages {
			if err != nil {
				return // the browser has ended
			}
			p.hear(m)
		}
	}()
	p.do(chromedp.EmulateViewport(1280, 900))
	t.Cleanup(func() {
		if t.Failed() {
			if data, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100)); err == nil {
				if picture, err := os.CreateTemp("", "holdfast-*.png"); err == nil {
					picture.Write(data)
					picture.Close()
					t.Logf("screenshot of the page: %s", picture.Name())
				}
			}
		}
		cancel()
		<-listened
		for _, text := range p.wrong {
			t.Errorf("the browser complains: %s", text)
		}
	})
	return p
}

func (p *page) hear(m chromedp.ConsoleMessage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch m.Type {
	case "error", "warning", "assert", chromedp.ConsoleException:
		if text := m.Text + " " + m.URL; !p.lost || m.Source != "network" && m.Source != "security" && m.Type != "error" {
			p.wrong = append(p.wrong, text)
		}
	}
}

// expectTrouble allows or forbids complaints of the browser about failed requests.
func (p *page) expectTrouble(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = yes
}

func (p *page) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// open opens a dashboard and waits until it is live.
func (p *page) open(url string) {
	p.t.Helper()
	p.do(chromedp.Navigate(url))
	p.until(`document.body.dataset.connection === "live"`)
}

// until waits until an expression is true in the page.
func (p *page) until(expression string) {
	p.t.Helper()
	_, err := chromedp.Run(p.ctx, chromedp.Poll[chromedp.Void](expression, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(patience)))
	if err != nil {
		body, _ := chromedp.Run(p.ctx, chromedp.Text("body"))
		p.t.Fatalf("never true: %s (%v); the page shows\n%s", expression, err, body)
	}
}

// evaluate returns the value of an expression in the page.
func evaluate[T any](p *page, expression string, options ...chromedp.EvaluateOption) T {
	p.t.Helper()
	value, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression, options...))
	if err != nil {
		p.t.Fatal(err)
	}
	return value
}

// text returns the text of an element.
func (p *page) text(id string) string {
	p.t.Helper()
	return evaluate[string](p, fmt.Sprintf("document.getElementById(%q).textContent", id))
}

// number returns an expression for the number in an element.
func number(id string) string {
	return fmt.Sprintf(`Number(document.getElementById(%q).textContent.replace(/[^0-9.]/g, ""))`, id)
}

// set types a value into a field.
func (p *page) set(id, value string) {
	p.t.Helper()
	evaluate[chromedp.Void](p, fmt.Sprintf("document.getElementById(%q).select()", id))
	p.do(chromedp.SendKeys(chromedp.ID(id), value))
}

// choose selects a value of a field.
func (p *page) choose(id, value string) {
	p.t.Helper()
	evaluate[chromedp.Void](p, fmt.Sprintf(`(() => {
		const field = document.getElementById(%q);
		field.value = %q;
		field.dispatchEvent(new Event("input", {bubbles: true}));
	})()`, id, value))
}

func (p *page) click(id string) {
	p.t.Helper()
	p.do(chromedp.ScrollIntoView(chromedp.ID(id)), chromedp.Click(chromedp.ID(id)))
}

// burst sends a burst with the form.
func (p *page) burst(path string, jobs, seconds int) {
	p.t.Helper()
	p.set("burst-jobs", fmt.Sprint(jobs))
	p.set("burst-seconds", fmt.Sprint(seconds))
	p.choose("burst-path", path)
	p.click("burst-send")
	p.until(fmt.Sprintf(`document.getElementById("burst-status").textContent.includes("to %s")`, path))
}

// picture saves a screenshot of the whole page.
func (p *page) picture(name string) {
	p.t.Helper()
	if *screenshots == "" {
		return
	}
	evaluate[chromedp.Void](p, "scrollTo(0, 0)")
	data, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*screenshots, name+".png"), data, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// The README shows only what is above the charts: the whole page would be longer than a
// reader's screen.
const aboveTheCharts = 732

// crop saves the upper part of a picture that has been saved.
func (p *page) crop(name, part string, height int) {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(*screenshots, name+".png"))
	if err != nil {
		p.t.Fatal(err)
	}
	whole, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		p.t.Fatal(err)
	}
	upper := whole.(interface {
		SubImage(image.Rectangle) image.Image
	}).SubImage(image.Rect(0, 0, whole.Bounds().Dx(), height))
	var out bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, upper); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*screenshots, part+".png"), out.Bytes(), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// A watched is a server with its dashboard.
type watched struct {
	*process
	t     *testing.T
	admin string // host:port
}

func watch(t *testing.T, args ...string) *watched {
	t.Helper()
	p := start(t, append([]string{"-admin", "127.0.0.1:0"}, args...)...)
	return &watched{p, t, p.Admin()}
}

// stats returns the statistics of the server itself.
func (w *watched) stats() (s struct {
	Dispatcher struct {
		Workers  int
		Overflow string
		Accepted int
	}
}) {
	w.t.Helper()
	res, err := http.Get("http://" + w.admin + "/stats")
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// The page shows what happens in the server.
func TestDashboardNumbersMove(t *testing.T) {
	w := watch(t)
	p := browse(t)
	p.open("http://" + w.admin + "/")
	p.until(number("accepted") + ` === 0 && document.body.dataset.state === "running"`)
	p.picture("idle")
	for range 3 {
		res, err := http.Post("http://"+w.addr+"/bbb", "application/json", strings.NewReader(`{"sleep_time":0}`))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	p.until(number("accepted") + " === 3 && " + number("succeeded") + " === 3")
	if n := w.stats().Dispatcher.Accepted; n != 3 {
		t.Errorf("the server accepted %d jobs, want 3", n)
	}
}

// A newcomer sends bursts, sees the queue fill and drain, and can compare /aaa with
// /bbb.
func TestDashboardBurst(t *testing.T) {
	w := watch(t, "-workers", "50", "-queue", "100")
	p := browse(t)
	p.open("http://" + w.admin + "/")
	p.burst("/aaa", 200, 1)
	p.until(number("aaa-answered") + " === 200")
	p.burst("/bbb", 300, 3)
	p.until(number("queued") + " === 100 && " + number("running") + " === 50")
	p.until(number("blocked") + " > 0")
	p.until(number("aaa-jobs") + " === 200 && " + number("bbb-jobs") + " === 300")
	p.picture("burst")
	p.until(number("bbb-answered") + " === 300 && " + number("queued") + " === 0 && " + number("running") + " === 0")
	if n := w.stats().Dispatcher.Accepted; n != 300 {
		t.Errorf("the server accepted %d jobs, want the 300 to /bbb", n)
	}
	// The clients got the answers of /aaa after a second, most of those of /bbb earlier.
	if aaa, bbb := p.text("aaa-p50"), p.text("bbb-p50"); aaa == bbb || aaa == "–" || bbb == "–" {
		t.Errorf("time to answer: %s for /aaa, %s for /bbb", aaa, bbb)
	}

	p.choose("overflow", "reject")
	p.click("apply")
	p.until(`document.getElementById("controls-status").textContent.startsWith("Done")`)
	p.burst("/bbb", 300, 30)
	p.until(number("refused-full") + " === 150 && " + number("bbb-refused") + " === 150")
	p.burst("/aaa", 10, 60)
	p.until(number("aaa-pending") + " === 10")
	p.click("burst-stop")
	p.until(number("aaa-pending") + " === 0")
}

// Under a steady load, the page describes the load and gives advice for it.
func TestDashboardAdvice(t *testing.T) {
	p := browse(t) // first, since the measured rate includes the time before the first job
	w := watch(t, "-workers", "40", "-queue", "200")
	ctx, stop := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	clients.Go(func() {
		for random := rand.New(rand.NewPCG(1, 1)); ctx.Err() == nil; {
			time.Sleep(time.Duration(random.ExpFloat64() * float64(time.Second) / 30))
			clients.Go(func() {
				res, err := http.Post("http://"+w.addr+"/bbb", "application/json", strings.NewReader(`{"sleep_time":1}`))
				if err != nil {
					t.Error(err)
					return
				}
				res.Body.Close()
			})
		}
	})
	defer clients.Wait()
	defer stop()
	p.open("http://" + w.admin + "/")
	p.until(`document.getElementById("verdict").classList.contains("yes") || document.getElementById("verdict").classList.contains("no")`)
	p.until(number("advice-workers") + " > 25 && " + number("advice-workers") + " < 80")
	if *screenshots != "" {
		p.do(chromedp.Sleep(4 * time.Minute)) // so that the charts show something
		p.burst("/aaa", 200, 1)
		p.burst("/bbb", 300, 1)
		p.until(number("blocked") + " > 0 && " + number("aaa-answered") + " === 200")
		p.picture("dashboard")
		p.crop("dashboard", "queue", aboveTheCharts)
	}
	p.expectTrouble(true) // the server ends before the browser
}

func TestDashboardControls(t *testing.T) {
	w := watch(t)
	p := browse(t)
	p.open("http://" + w.admin + "/")

	p.set("workers-input", "37")
	p.until(`document.getElementById("workers-input").value === "37"`)
	p.click("apply")
	p.until(`document.getElementById("controls-status").textContent.includes("37 workers")`)
	if n := w.stats().Dispatcher.Workers; n != 37 {
		t.Errorf("the server has %d workers, want 37", n)
	}
	p.until(`document.getElementById("workers-of").textContent.includes("37")`)

	// An invalid value is reported, and nothing is sent.
	p.set("workers-input", "2000000")
	p.click("apply")
	p.until(`!document.getElementById("workers-input").validity.valid`)
	p.click("discard")
	p.until(`document.getElementById("workers-input").value === "37"`)

	// The page works without a mouse, from the field to its buttons. Updates of the
	// numbers do not overwrite the edit.
	p.set("workers-input", "41")
	before := p.text("uptime")
	p.until(fmt.Sprintf(`document.getElementById("uptime").textContent !== %q`, before)) // an update must not overwrite it
	p.do(chromedp.KeyEvent(kb.Enter))
	p.until(`document.getElementById("workers-of").textContent.includes("41")`)

	p.click("pause")
	p.until(`document.body.dataset.state === "paused"`)
	if n := w.stats().Dispatcher.Workers; n != 0 {
		t.Errorf("the server has %d workers after Pause", n)
	}
	p.burst("/bbb", 120, 0)
	p.until(number("queued") + " === 120")
	p.picture("paused")
	p.click("pause")
	p.until(`document.body.dataset.state === "running" && ` + number("queued") + " === 0")
	if n := w.stats().Dispatcher.Workers; n != 41 {
		t.Errorf("the server has %d workers after the pause, want 41 as before", n)
	}

	// The page shows the text of the server's refusal.
	p.expectTrouble(true)
	p.burst("/aaa", 10000, 60)
	p.click("burst-send")
	p.until(`document.getElementById("burst-error").textContent.includes("want at most 10000 in all")`)
	p.click("burst-stop")
}

// The page shows a lost connection, and recovers by itself.
func TestDashboardReconnects(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	admin := l.Addr().String()
	l.Close()
	w := start(t, "-admin", admin)
	p := browse(t)
	p.open("http://" + admin + "/")
	p.burst("/bbb", 20, 0)
	p.until(number("accepted") + " === 20")

	p.expectTrouble(true)
	w.Cmd.Process.Kill()
	<-w.Ended
	p.until(`document.body.dataset.connection === "lost" && !document.getElementById("lost").hidden && document.title.includes("no connection")`)
	p.picture("disconnected")
	if p.text("accepted") != "20" {
		t.Errorf("the last numbers are gone; accepted is %s", p.text("accepted"))
	}
	again := proctest.Launch(t, nil, proctest.Build(t), "-addr", "127.0.0.1:0", "-admin", admin)
	again.Addr()
	p.until(`document.body.dataset.connection === "live" && document.getElementById("lost").hidden && !document.title.includes("no connection")`)
	p.until(number("accepted") + " === 0")
}

func TestDashboardOnAPhone(t *testing.T) {
	w := watch(t, "-workers", "20", "-queue", "50")
	p := browse(t)
	p.do(chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile, chromedp.EmulateTouch))
	p.open("http://" + w.admin + "/")
	p.burst("/bbb", 100, 20)
	p.until(number("queued") + " === 50")
	wide := evaluate[[]string](p, `[...document.querySelectorAll("body *")]
		.filter(e => !e.closest(".unseen") && e.getBoundingClientRect().right > 361).map(e => e.tagName + "#" + e.id)`)
	if len(wide) > 0 {
		t.Errorf("wider than the screen: %s", wide)
	}
	p.picture("phone")
}

func TestDashboardInTheDark(t *testing.T) {
	w := watch(t, "-workers", "20", "-queue", "50")
	p := browse(t)
	colours := func(scheme string) (page, text string) {
		feature := &emulation.MediaFeature{Name: "prefers-color-scheme", Value: scheme}
		if _, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{feature}}); err != nil {
			t.Fatal(err)
		}
		return evaluate[string](p, "getComputedStyle(document.body).backgroundColor"), evaluate[string](p, "getComputedStyle(document.body).color")
	}
	p.open("http://" + w.admin + "/")
	light, onLight := colours("light")
	dark, onDark := colours("dark")
	if light == dark || onLight == onDark {
		t.Errorf("light %s on %s, dark %s on %s", onLight, light, onDark, dark)
	}
	p.burst("/bbb", 100, 20)
	p.until(number("queued") + " === 50")
	p.picture("dark")
}

// The browser asks for a token once, and then the page works as usual.
func TestDashboardWithToken(t *testing.T) {
	const token = "correct-horse-battery"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := watch(t, "-admin-token-file", file)
	p := browse(t)
	p.open("http://operator:" + token + "@" + w.admin + "/")
	p.burst("/bbb", 7, 0)
	p.until(number("accepted") + " === 7")

	stranger := browse(t)
	stranger.expectTrouble(true)
	if err := chromedp.Do(stranger.ctx, chromedp.Navigate("http://"+w.admin+"/")); err == nil || !strings.Contains(err.Error(), "ERR_INVALID_AUTH_CREDENTIALS") {
		t.Errorf("without the token: %v", err)
	}
}

// The server refuses whatever a hostile page makes the operator's browser send.
func TestDashboardHostilePage(t *testing.T) {
	w := watch(t, "-workers", "5")
	_, port, err := net.SplitHostPort(w.admin)
	if err != nil {
		t.Fatal(err)
	}
	evil := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		io.WriteString(rw, "<!doctype html><title>evil</title>")
	}))
	defer evil.Close()

	// From another origin, with every way in which a page can send something.
	p := browse(t)
	p.expectTrouble(true)
	p.do(chromedp.Navigate(evil.URL))
	attack := `(async () => {
		const target = "http://` + w.admin + `";
		const seen = [];
		const tell = (what) => (r) => seen.push(what + " " + (r && r.status));
		for (const [method, path, body] of [["POST", "/burst", '{"path":"/bbb","jobs":9,"sleep_time":0}'], ["GET", "/stats"], ["GET", "/jobs"], ["GET", "/debug/pprof/profile?seconds=1"]]) {
			await fetch(target + path, {method, body, mode: "no-cors", headers: {"Content-Type": "text/plain"}}).then(tell(path), tell(path));
			await fetch(target + path, {method, body}).then(tell(path), tell(path));
		}
		await fetch(target + "/dispatcher", {method: "PATCH", body: '{"workers":1}'}).then(tell("patch"), tell("patch"));
		const ok = await new Promise((done) => { const s = document.createElement("script"); s.src = target + "/page.js"; s.onload = () => done("script loaded"); s.onerror = () => done(""); document.head.append(s); });
		const frame = document.createElement("iframe"); frame.src = target + "/"; document.body.append(frame);
		const events = await new Promise((done) => { const s = new EventSource(target + "/events"); s.onopen = () => done("events"); s.onerror = () => done(""); });
		return [...seen.filter(s => !s.endsWith(" undefined") && !s.endsWith(" 0")), ok, events].filter(s => s);
	})()`
	if got := evaluate[[]string](p, attack, chromedp.EvalAwaitPromise); len(got) > 0 {
		t.Errorf("a page of another origin got %q", got)
	}

	// By a name that resolves to the server, so that the page has the same origin.
	rebound := browse(t, chromedp.Flag("host-resolver-rules", "MAP evil.example 127.0.0.1"))
	rebound.expectTrouble(true)
	rebound.do(chromedp.Navigate("http://evil.example:" + port + "/"))
	body, err := chromedp.Run(rebound.ctx, chromedp.Text("body"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(body, `"status":421`) {
		t.Errorf("through another name: %.200s", body)
	}

	d := w.stats().Dispatcher
	if d.Workers != 5 || d.Accepted != 0 {
		t.Errorf("%d workers, %d jobs accepted: a hostile page changed something", d.Workers, d.Accepted)
	}
	if log := w.Text(); strings.Contains(log, "dispatcher changed") {
		t.Error(log)
	}
}
