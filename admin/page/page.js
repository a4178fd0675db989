"use strict";

// The page shows what GET /events sends, and keeps only the samples of the last five
// minutes.

const WINDOW = 300; // seconds that the charts show, and the most samples kept
const SILENCE = 5000; // ms without an event after which the connection counts as lost
const PATIENCE = 15000; // ms, the longest pause between two attempts to connect
const SUMMARY_EVERY = 10000; // ms; a screen reader that reads every second is of no use
const MOST_CELLS = 200;
const MOST_DOTS = 40;

const OVERFLOW = {
  block: { name: "wait outside", help: "Block: a request waits outside until there is a place, which slows its sender to the pace of the workers. No request is refused." },
  reject: { name: "reject", help: "Reject: a request that finds no place gets 503 with Retry-After at once." },
  "drop-oldest": { name: "drop the oldest", help: "Drop oldest: the job that has waited longest is dropped for the new one. It never runs, although it was accepted." },
};

const body = document.body;

const samples = []; // oldest first; each has t, its time in ms
let latest = null; // the last document
const edited = new Set(); // the inputs of the controls that were edited and not applied

// The page

function draw(tag, attributes, parent) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) e.setAttribute(name, attributes[name]);
  parent?.append(e);
  return e;
}

function list(id, sentences) {
  const lis = items($(id), sentences?.length ?? 0, "li");
  for (let i = 0; i < lis.length; i++) if (lis[i].textContent !== sentences[i]) lis[i].textContent = sentences[i];
  show(id, lis.length > 0);
}

function scale(id, ends) {
  const spans = items($(id), 3, "span");
  [ends[0], (ends[0] + ends[1]) / 2, ends[1]].forEach((v, i) => { spans[i].textContent = decimal(v); });
}

// attention marks a count that should be 0.
function attention(id, n) {
  text(id, count(n));
  $(id).parentElement.classList.toggle("some", n > 0);
}

function render() {
  if (!latest || document.hidden) return;
  const d = latest.dispatcher;
  renderCondition(d);
  renderFlow(d, latest.second, latest.minute);
  renderControls(d);
  renderBursts(latest.bursts);
  renderAdvice(latest.advice, d);
  renderUrgencies(latest.urgencies);
  renderNodes(latest.cluster);
  renderTimes(d, latest.minute);
  renderKept(latest.kept);
  renderLog(latest.log);
  for (const chart of charts) chart.draw();
  summarize(d);
}

const stateOf = (d) => latest.stopping ? "stopping" : d.workers === 0 ? "paused" : "running";

// The title is all that is visible of a page in the background.
function entitle(d) {
  const state = stateOf(d);
  document.title = `${state === "running" ? "" : state + ", "}${count(d.queued)} queued, ${count(d.running)} running · Holdfast`;
}

function renderCondition(d) {
  const state = body.dataset.state = stateOf(d);
  text("state", state);
  text("version", latest.version || "");
  text("uptime", "up " + duration(latest.uptime_seconds));
  // No numbers here: a screen reader would read each change.
  text("condition", state === "stopping" ? "Shutting down: no more work is accepted. Running and queued jobs are finishing."
    : state === "paused" ? "Paused: there are no workers. Running jobs finish, and no queued job starts until you resume." : "");
  show("condition", state !== "running");
}

function renderFlow(d, second, minute) {
  text("arrivals", count(second.arrivals));
  text("arrivals-minute", per(minute.arrivals_per_second));
  text("accepted", count(d.accepted));
  text("refused", count(Object.values(d.refused).reduce((sum, n) => sum + n, 0)));
  attention("refused-class", d.refused.share + d.refused.late);
  for (const reason of ["full", "closed", "nested"]) attention("refused-" + reason, d.refused[reason]);
  attention("gave-up", d.gave_up);

  text("queued", count(d.queued));
  text("queue-of", d.queue ? `of ${plural(d.queue, "place", "places")}` : "no places, hand-over only");
  show("full", d.queue > 0 && d.queued >= d.queue);
  $("tank").classList.toggle("none", d.queue === 0);
  const share = (n) => d.queue ? Math.min(100, 100 * n / d.queue) + "%" : "0";
  $("tank-fill").style.width = share(d.queued);
  show("tank-scale", d.queue > 0);
  scale("tank-scale", [d.queue, 0]);
  text("oldest", d.queued ? duration(d.oldest_age_seconds) : DASH);
  text("policy", OVERFLOW[d.overflow]?.name ?? d.overflow);

  let each = 1;
  for (let i = 0; d.blocked > MOST_DOTS * each; i++) each *= i % 3 === 1 ? 2.5 : 2;
  items($("outside"), Math.ceil(d.blocked / each), "i");
  text("blocked", count(d.blocked));
  text("outside-scale", each > 1 ? `a dot is ${count(each)}` : "");
  $("blocked").parentElement.classList.toggle("some", d.blocked > 0);

  // A dispatcher that is shut down has no workers but those that still run a job.
  const workers = latest.stopping ? d.running : d.workers;
  const surplus = Math.max(0, d.running - workers);
  text("running", count(d.running));
  text("workers-of", surplus || latest.stopping ? "busy" : `of ${count(workers)} busy`);
  show("surplus", surplus > 0);
  text("surplus", `${count(surplus)} of them leaving`);
  text("idle", count(Math.max(0, workers - d.running)));
  text("busy-minute", decimal(minute.busy_workers));
  renderCells(d.running, workers);

  text("finished", count(second.finished));
  text("finished-minute", per(minute.finished_per_second));
  let ended = 0;
  for (const outcome in d.ended) ended += d.ended[outcome];
  text("ended", count(ended));
  for (const outcome of ["succeeded", "canceled"]) text(outcome, count(d.ended[outcome]));
  for (const outcome of ["failed", "panicked", "dropped", "abandoned"]) attention(outcome, d.ended[outcome]);
}

function renderCells(running, workers) {
  const most = Math.max(running, workers);
  const cells = $("cells");
  show("cells", most <= MOST_CELLS);
  show("worker-bar", most > MOST_CELLS);
  if (most > MOST_CELLS) {
    cells.replaceChildren();
    $("worker-fill").style.width = 100 * running / most + "%";
    scale("worker-scale", [0, most]);
    return;
  }
  cells.className = most <= 24 ? "cells few" : most <= 112 ? "cells some" : "cells";
  const all = items(cells, most, "i");
  for (let i = 0; i < most; i++) {
    const name = i >= running ? "" : i >= workers ? "leaving" : "busy";
    if (all[i].className !== name) all[i].className = name;
  }
}

function renderAdvice(a, d) {
  const ready = !a.missing;
  const verdict = $("verdict");
  $("advice").classList.toggle("waiting", !ready);
  show("verdict", ready);
  verdict.className = "verdict" + (!ready ? "" : a.holds ? " yes" : " no");
  text("verdict", a.holds ? "Capacity is sufficient" : "Capacity is not sufficient");
  text("advice-window", ready && a.window_seconds ? `from the last ${duration(a.window_seconds)}` : "");
  list("advice-reasons", ready ? a.reasons : ["No advice yet. " + a.missing]);
  show("advice-ready", ready);
  if (!ready) return;

  text("advice-workers-now", count(d.workers));
  text("advice-workers", count(a.workers));
  text("advice-queue-now", count(d.queue));
  text("advice-queue", count(a.queue));
  list("advice-why", a.why);
  text("advice-rate", per(a.arrivals_per_second));
  text("advice-max-rate", per(a.max_rate_per_second));
  text("headroom", per(a.headroom_per_second));
  text("advice-service", duration(a.service_seconds));
  text("advice-load", a.load_erlangs == null ? DASH : `${decimal(a.load_erlangs)} busy, ${percent(a.utilisation)}`);
  text("advice-burst", a.burst?.factor > 1 ? `${decimal(a.burst.factor)} times for ${duration(a.burst.seconds)}` : "none seen");
  text("wait-predicted", duration(a.wait?.predicted_mean_seconds));
  const ratio = a.wait?.ratio;
  text("wait-measured", duration(a.wait?.measured_mean_seconds) + (ratio == null ? "" : `, ${decimal(ratio)} times that`));
  text("wait-note", a.wait?.note || "");
}

const QUANTILES = ["mean", "p50", "p90", "p99", "max"];

function renderTimes(d, minute) {
  const rows = { "wait-minute": minute.wait_seconds, "run-minute": minute.run_seconds, "wait-total": d.wait_seconds, "run-total": d.run_seconds };
  for (const id in rows) {
    const cells = $(id).cells;
    while (cells.length <= QUANTILES.length) $(id).append(make("td"));
    QUANTILES.forEach((q, i) => { cells[i + 1].textContent = duration(rows[id][q]); });
  }
}

function renderUrgencies(urgencies) {
  // Where requests are not told apart there is one row, which the page has already said.
  show("urgencies", urgencies.length > 1 || urgencies.some((u) => u.clients.some((c) => c.client) || u.refused.share + u.refused.late + u.refused.expired > 0));
  rows("urgency-rows", urgencies.map((u) => {
    const r = u.refused;
    const clients = u.clients.slice(0, 3).map((c) => `${c.client || "no name"} ${count(c.queued)}`).join(", ");
    return [u.urgency, count(u.queued), duration(u.oldest_age_seconds), count(r.full), count(r.share), count(r.late), count(r.expired), count(r.closed), count(u.dropped), count(u.in_vain), clients || DASH];
  }));
}

// rows fills the body of a table.
function rows(id, all) {
  const lines = items($(id), all.length, "tr");
  all.forEach((values, i) => {
    const cells = items(lines[i], values.length, "td");
    values.forEach((v, k) => { if (cells[k].textContent !== String(v)) cells[k].textContent = v; });
  });
}

function renderNodes(c) {
  show("nodes", c != null);
  if (c == null) return;
  text("nodes-title", `Nodes of ${c.name}`);
  text("nodes-term", `${c.leader || "No node"} leads, in term ${count(c.term)}.`);
  rows("node-rows", c.nodes.map((n) => [n.name, count(n.workers), count(n.running), count(n.held), duration(n.silent_seconds) + " ago", n.version || DASH, n.addr]));
}

function renderKept(k) {
  show("kept", k !== null);
  show("pages", k !== null); // without Jobs there is no page of them
  if (k === null) return;
  text("kept-open", count(k.open));
  text("kept-delayed", count(k.delayed));
  text("kept-retries", count(k.retries));
  text("kept-jobs", count(k.jobs));
  text("kept-failed", count(k.failed));
  text("kept-bytes", bytes(k.bytes));
  text("kept-held", bytes(k.held_bytes));
  text("kept-refused", count(k.refused_memory));
  text("kept-reach", duration(k.reach_seconds));
  for (const bound of ["age", "jobs", "bytes"]) text("evicted-" + bound, count(k.evicted[bound]));
}

function renderLog(l) {
  show("log", l !== null);
  if (l === null) return;
  text("log-bytes", bytes(l.bytes));
  text("log-waiting", count(l.waiting_records));
  for (const q of ["p50", "p99"]) text("log-" + q, duration(l.write_seconds[q]));
  text("log-error", l.error ? "No job is accepted: " + l.error : "takes records");
  $("log-error").parentElement.classList.toggle("some", l.error !== "");
}

function renderBursts(bursts) {
  show("burst", bursts != null);
  show("burst-left", bursts?.some((b) => b.stopped > 0) ?? false);
  for (const path of ["/aaa", "/bbb"]) {
    const b = bursts?.find((b) => b.path === path);
    const cell = (name, value) => text(path.slice(1) + "-" + name, b ? value(b) : DASH);
    cell("jobs", (b) => count(b.jobs));
    cell("sleep", (b) => count(b.sleep_time));
    cell("answered", (b) => count(b.answered));
    cell("pending", (b) => count(b.pending));
    cell("refused", (b) => count(b.refused));
    cell("left", (b) => count(b.stopped));
    for (const q of ["p50", "p99", "max"]) cell(q, (b) => duration(b.answer_seconds[q]));
  }
}

let summarized = 0;

function summarize(d) {
  if (Date.now() - summarized < SUMMARY_EVERY) return;
  summarized = Date.now();
  const parts = [`${count(d.running)} of ${plural(d.workers, "worker", "workers")} busy`, `${count(d.queued)} of ${count(d.queue)} places in the queue taken`];
  if (d.blocked) parts.push(`${count(d.blocked)} waiting outside`);
  if (latest.minute.refused_per_second) parts.push(`${per(latest.minute.refused_per_second)} refused in the last minute`);
  if (latest.minute.gave_up_per_second) parts.push(`${per(latest.minute.gave_up_per_second)} gave up in the last minute`);
  if (!latest.advice.missing && !latest.advice.holds) parts.push("capacity is not sufficient");
  text("summary", (body.dataset.state === "running" ? "" : body.dataset.state + ": ") + parts.join(", ") + ".");
}

// Charts

const LEFT = 46, RIGHT = 6, TOP = 8, BOTTOM = 20;
let pointed = null; // where the pointer is over a chart, 0 to 1 from left to right
const charts = [];

// A Chart draws some lines over the samples. A line has a name, a get that takes
// a sample, and a look: class names for the CSS. With area it is filled down to
// 0, or to the line that it stands on; a bound is left out as long as it would
// flatten the rest.
class Chart {
  constructor(id, lines, { format = count, log = false } = {}) {
    Object.assign(this, { lines, format, log });
    const figure = $(id);
    this.title = figure.querySelector("h3").textContent;
    const legend = make("ul", "legend");
    this.values = lines.map((line) => {
      const li = make("li"), value = make("b");
      const swatch = draw("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" });
      if (line.area) draw("path", { d: "M0 2H22V10H0Z", class: "area " + line.look }, swatch);
      draw("path", { d: line.area ? "M1 2H21" : "M1 5H21", class: "line " + line.look }, swatch);
      li.append(swatch, line.name + " ", value);
      legend.append(li);
      return value;
    });
    this.svg = draw("svg", { class: "plot", role: "img" });
    figure.append(legend, this.svg);
    this.grid = draw("g", {}, this.svg);
    this.areas = lines.map((line) => line.area && draw("path", { class: "area " + line.look }, this.svg));
    this.paths = lines.map((line) => draw("path", { class: "line " + line.look }));
    this.svg.append(...this.paths.toReversed()); // the first one on top
    this.cursor = draw("path", { class: "cursor" }, this.svg);
    new ResizeObserver(([entry]) => {
      ({ width: this.width, height: this.height } = entry.contentRect);
      requestAnimationFrame(() => this.draw()); // drawing here could change the size again
    }).observe(this.svg);
    this.svg.addEventListener("pointermove", (e) => point((e.offsetX - LEFT) / (this.width - LEFT - RIGHT)));
    this.svg.addEventListener("pointerleave", () => point(null));
    charts.push(this);
  }

  // range returns the ends of the scale and its grid lines.
  range() {
    const values = this.lines.filter((line) => !line.bound).flatMap((line) => samples.map(line.get)).filter((v) => v > 0);
    const low = Math.min(...values);
    let high = Math.max(0, ...values);
    if (this.log) {
      const to = high ? Math.ceil(Math.log10(high)) : 0;
      const from = Math.min(to - 3, high ? Math.floor(Math.log10(low)) : 0);
      const step = Math.ceil((to - from) / 4);
      const ticks = [];
      for (let e = from; e <= to; e += step) ticks.push(10 ** e);
      return { low: 10 ** from, high: 10 ** to, ticks };
    }
    for (const line of this.lines.filter((line) => line.bound)) {
      const bound = line.get(samples.at(-1) ?? {}) ?? 0;
      if (!high || bound <= 10 * high) high = Math.max(high, bound);
    }
    high = Math.max(high, 4);
    const rough = high / 4;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((k) => k * unit).find((s) => s >= rough && Number.isInteger(s));
    const ticks = [];
    for (let v = 0; v - step < high; v += step) ticks.push(v);
    return { low: 0, high: ticks.at(-1), ticks };
  }

  draw() {
    if (!this.width || document.hidden) return;
    const end = samples.at(-1)?.t;
    const { low, high, ticks } = this.range();
    const bottom = this.height - BOTTOM, across = this.width - LEFT - RIGHT;
    const x = (t) => LEFT + across * (1 - (end - t) / (WINDOW * 1000));
    const y = (v) => {
      const share = this.log ? Math.log(Math.max(v, low) / low) / Math.log(high / low) : v / high;
      return bottom - (bottom - TOP) * share;
    };

    this.grid.replaceChildren();
    for (const v of ticks) {
      draw("path", { d: `M${LEFT} ${y(v)}H${this.width - RIGHT}`, class: "grid" }, this.grid);
      draw("text", { x: LEFT - 7, y: y(v) + 4, "text-anchor": "end" }, this.grid).textContent = !this.log ? count(v) : v < 1 ? duration(v) : count(v) + THIN + "s";
    }
    for (let m = 0; m <= WINDOW / 60; m++) {
      const at = this.width - RIGHT - across * m * 60 / WINDOW;
      draw("text", { x: at, y: this.height - 3, "text-anchor": m ? "middle" : "end" }, this.grid).textContent = m ? `−${m}${THIN}min` : "now";
    }

    this.lines.forEach((line, i) => {
      let d = "", area = "", run = [];
      const close = () => {
        if (!run.length) return;
        const top = "M" + run.map(([px, py]) => px + " " + py).join("L");
        d += run.length > 1 ? top : top + "h.01"; // a round cap makes a dot of it
        if (line.area) area += top + "L" + run.map(([px, , base]) => px + " " + base).reverse().join("L") + "Z";
        run = [];
      };
      let last = 0;
      for (const s of samples) {
        let v = line.get(s);
        if (line.bound && v > high) v = null;
        if (v == null || s.t - last > 2500) close();
        last = s.t;
        if (v != null) run.push([x(s.t).toFixed(1), y(v).toFixed(1), y(line.on?.(s) ?? 0).toFixed(1)]);
      }
      close();
      this.paths[i].setAttribute("d", d);
      this.areas[i]?.setAttribute("d", area);
    });
    this.read(x, bottom);
  }

  // read writes the values of the second pointed at, or of the last one, into the legend.
  read(x, bottom) {
    const s = sampleAt(pointed);
    this.cursor.setAttribute("d", pointed == null || !s ? "" : `M${x(s.t)} ${TOP}V${bottom}`);
    const said = this.lines.map((line, i) => {
      const v = s && line.get(s);
      const value = this.format(line.on && v != null ? v - line.on(s) : v);
      if (this.values[i].textContent !== value) this.values[i].textContent = value;
      return line.name + " " + value;
    });
    this.svg.setAttribute("aria-label", `${this.title}, over the last 5 minutes. ${pointed == null ? "Now" : "At that second"}: ${said.join(", ")}.`);
  }
}

function sampleAt(position) {
  if (position == null || !samples.length) return samples.at(-1);
  const t = samples.at(-1).t - (1 - position) * WINDOW * 1000;
  return samples.reduce((a, b) => Math.abs(b.t - t) < Math.abs(a.t - t) ? b : a);
}

function point(position) {
  pointed = position == null ? null : Math.min(1, Math.max(0, position));
  const s = pointed == null ? null : sampleAt(pointed);
  text("moment", s ? "at " + new Date(s.t).toLocaleTimeString() : "");
  for (const chart of charts) chart.draw();
}

new Chart("chart-rates", [
  { name: "arrivals", look: "", get: (s) => s.arrivals },
  { name: "finished", look: "flows", area: true, get: (s) => s.finished },
  { name: "refused", look: "bad", get: (s) => s.refused },
  { name: "gave up", look: "warn", get: (s) => s.gave_up },
]);
new Chart("chart-queue", [
  { name: "in the queue", look: "flows", area: true, get: (s) => s.queued },
  { name: "outside", look: "warn", area: true, get: (s) => s.queued + s.blocked, on: (s) => s.queued },
  { name: "places", look: "bound", bound: true, get: (s) => s.queue },
]);
new Chart("chart-workers", [
  { name: "busy", look: "flows", area: true, get: (s) => s.running },
  { name: "workers", look: "bound", bound: true, get: (s) => s.workers },
]);
new Chart("chart-times", [
  { name: "wait p50", look: "flows", get: (s) => s.wait_p50_seconds },
  { name: "wait p99", look: "flows thin", get: (s) => s.wait_p99_seconds },
  { name: "run p50", look: "", get: (s) => s.run_p50_seconds },
  { name: "run p99", look: "thin", get: (s) => s.run_p99_seconds },
], { format: duration, log: true });

// The connection

let source = null;
let heard = 0; // when the last event came
let attempts = 0;
let retryAt = 0; // when to try again; 0 while an attempt is under way

function connect() {
  source?.close();
  retryAt = 0;
  heard = Date.now();
  source = new EventSource(address("events"));
  source.addEventListener("history", (e) => {
    heard = Date.now();
    samples.splice(0, samples.length, ...(JSON.parse(e.data) ?? []).map(timed).slice(-WINDOW));
  });
  source.addEventListener("stats", (e) => {
    heard = Date.now();
    attempts = 0;
    latest = JSON.parse(e.data);
    append(timed(latest.second));
    body.dataset.connection = "live";
    text("connection", "live");
    show("lost", false);
    entitle(latest.dispatcher);
    render();
  });
  // EventSource reconnects by itself after some errors and not after others. Here it
  // never does.
  source.onerror = lose;
}

function timed(sample) {
  sample.t = Date.parse(sample.time);
  return sample;
}

// append keeps the samples in order even if the server's clock is set back.
function append(sample) {
  if (!(sample.t > 0)) return; // the server has not seen a full second yet
  while (samples.length && samples.at(-1).t >= sample.t) samples.pop();
  samples.push(sample);
  while (sample.t - samples[0].t > WINDOW * 1000 || samples.length > WINDOW) samples.shift();
}

function lose() {
  source.close();
  retryAt = Date.now() + Math.min(PATIENCE, 1000 * 2 ** attempts++);
  body.dataset.connection = "lost";
  text("connection", "lost");
  text("lost", latest ? `No connection to the server. The figures are from ${new Date(latest.time).toLocaleTimeString()}. The page reconnects by itself.`
    : "No connection to the server. The page keeps trying to connect.");
  show("lost", true);
  document.title = "no connection · Holdfast";
}

setInterval(() => {
  if (retryAt ? Date.now() >= retryAt : Date.now() - heard > SILENCE) retryAt ? connect() : lose();
}, 500);

document.addEventListener("visibilitychange", render);

// The controls

// act runs one action of a form at a time, and shows in the form how it ended.
async function act(name, action) {
  const form = $(name === "burst" ? "burst-form" : name);
  if (form.ariaBusy === "true") return;
  form.ariaBusy = "true";
  text(name + "-error", "");
  text(name + "-status", "");
  try {
    text(name + "-status", await action());
  } catch (err) {
    text(name + "-error", err.message);
  }
  form.ariaBusy = "false";
}

const inputs = { workers: $("workers-input"), overflow: $("overflow") };

// What the operator has typed stays until it is applied. The rest follows the server,
// which others may control too.
function renderControls(d) {
  for (const name in inputs) {
    const input = inputs[name];
    if (!edited.has(input) && document.activeElement !== input) input.value = d[name];
    input.classList.toggle("edited", edited.has(input));
  }
  show("discard", edited.size > 0);
  text("overflow-help", OVERFLOW[inputs.overflow.value]?.help ?? "");
  const paused = stateOf(d) === "paused";
  text("pause", !paused ? "Pause" : d.resume_workers ? `Resume with ${plural(d.resume_workers, "worker", "workers")}` : "Resume");
  $("pause").classList.toggle("primary", paused);
  $("controls-fields").disabled = $("burst-fields").disabled = latest.stopping;
}

function edit(input) {
  edited.add(input);
  if (latest) renderControls(latest.dispatcher);
}

function forget() {
  edited.clear();
  if (!latest) return;
  for (const name in inputs) inputs[name].value = latest.dispatcher[name];
  renderControls(latest.dispatcher);
}

async function change(wanted) {
  const now = (await send("PATCH", "dispatcher", wanted)).answer;
  if (latest && now) Object.assign(latest.dispatcher, now);
  render();
  return now;
}

function step(direction) {
  const n = Math.max(0, Math.floor(Number(inputs.workers.value)) || 0);
  const by = 10 ** Math.max(0, String(direction < 0 ? n - 1 : n).length - 2);
  inputs.workers.value = Math.min(1e6, Math.max(0, n + direction * by));
  edit(inputs.workers);
}

$("workers-less").addEventListener("click", () => step(-1));
$("workers-more").addEventListener("click", () => step(1));
for (const kind of ["input", "change"]) $("controls").addEventListener(kind, (e) => edit(e.target));
$("discard").addEventListener("click", () => {
  $("apply").focus(); // the button is about to vanish under the focus
  forget();
});

$("controls").addEventListener("submit", (e) => {
  e.preventDefault();
  act("controls", async () => {
    const wanted = {};
    if (edited.has(inputs.workers)) wanted.workers = Number(inputs.workers.value);
    if (edited.has(inputs.overflow)) wanted.overflow = inputs.overflow.value;
    if (!edited.size) return "Nothing was edited.";
    const now = await change(wanted);
    forget();
    return `Done: ${plural(now.workers, "worker", "workers")}, and a full queue means: ${OVERFLOW[now.overflow]?.name ?? now.overflow}.`;
  });
});

$("pause").addEventListener("click", () => act("controls", async () => {
  const d = latest?.dispatcher;
  if (!d) throw new Error("Not connected yet.");
  if (d.workers === 0 && !d.resume_workers) {
    inputs.workers.focus();
    throw new Error("Enter the number of workers.");
  }
  const now = await change({ workers: d.workers ? 0 : d.resume_workers });
  return now.workers ? `Resumed with ${plural(now.workers, "worker", "workers")}.` : "Paused.";
}));

$("burst-form").addEventListener("submit", (e) => {
  e.preventDefault();
  act("burst", async () => {
    const path = $("burst-path").value, jobs = Number($("burst-jobs").value), seconds = Number($("burst-seconds").value);
    await send("POST", "burst", { path, jobs, sleep_time: seconds });
    return `Sent ${plural(jobs, "job", "jobs")} of ${seconds} s to ${path}.`;
  });
});

$("burst-stop").addEventListener("click", () => act("burst", async () => {
  await send("DELETE", "burst");
  return "No request waits for an answer any more.";
}));

connect();
