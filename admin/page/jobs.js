"use strict";

// The list of jobs, and one of them beside it. Ids are passwords to the jobs, so the
// one that is shown stands in the fragment of the page's URL, which is never sent.

const PAGE = 100; // jobs in a page of the list
const SCAN = 1000; // jobs in a page of a search
const ENOUGH = 100; // matches of a search
const PERIOD = 3000; // ms between two updates
const ID_LENGTH = 26;
const LEAST_PREFIX = 4;

const OPEN = ["queued", "running"];
const states = [...$("filter-state").options].map((o) => o.value);

const rows = new Map(); // the table's rows by id
let jobs = []; // in the table
let next = ""; // where the list goes on; "" at its end
let prefix = ""; // of the ids searched for; "" if the list is shown
let serial = 0; // of the request for the list whose answer counts
let shown = null; // the job beside the list
let loading = 0; // requests for the list that are under way
let headOf = ""; // id of the job whose response is shown

// The list

const query = (limit, after) => {
  const q = new URLSearchParams({ limit });
  if ($("filter-state").value) q.set("state", $("filter-state").value);
  if (after) q.set("after", after);
  return "jobs?" + q;
};

// load shows the list from its beginning, or with after one more page of it.
async function load(after = "") {
  const mine = ++serial;
  loading++;
  try {
    const { answer, at } = await send("GET", query(PAGE, after));
    if (mine !== serial) return;
    prefix = "";
    next = answer.next ?? "";
    // A job that has ended meanwhile can be on a later page once more.
    const known = new Set(answer.jobs.map((j) => j.id));
    jobs = after ? [...jobs.filter((j) => !known.has(j.id)), ...answer.jobs] : answer.jobs;
    text("list-error", "");
    text("list-status", jobs.length ? "" : next ? "There are none on this page, but there may be more." : `There are no ${$("filter-state").value} jobs.`.replace("  ", " "));
    renderList(at);
  } catch (err) {
    if (mine === serial) text("list-error", err.message);
  } finally {
    loading--;
  }
}

// search shows the jobs whose id begins with a prefix. The server keeps no index for
// that, so all jobs are looked at, page by page.
async function search(wanted) {
  const mine = ++serial;
  $("filter-state").value = "";
  [prefix, jobs, next] = [wanted, [], ""];
  text("list-error", "");
  text("list-status", "Searching…");
  renderList(Date.now());
  loading++;
  let looked = 0, after = "";
  try {
    do {
      const { answer, at } = await send("GET", query(SCAN, after));
      if (mine !== serial) return;
      looked += answer.jobs.length;
      const known = new Set(jobs.map((j) => j.id));
      jobs.push(...answer.jobs.filter((j) => j.id.startsWith(wanted) && !known.has(j.id)));
      after = answer.next ?? "";
      text("list-status", `Searching… ${plural(looked, "job", "jobs")} so far.`);
      renderList(at);
    } while (after && jobs.length < ENOUGH);
    text("list-status", jobs.length ? `${plural(jobs.length, "job begins", "jobs begin")} with ${wanted}.` : `No job begins with ${wanted}. It may be no longer kept.`);
    if (jobs.length === 1) choose(jobs[0].id);
  } catch (err) {
    if (mine === serial) text("list-error", err.message);
  } finally {
    loading--;
  }
}

function renderList(at) {
  const wanted = new Set(jobs.map((j) => j.id));
  for (const [id, row] of rows) {
    if (wanted.has(id)) continue;
    row.remove();
    rows.delete(id);
  }
  // Rows that stay are not moved, so that they keep the focus.
  jobs.forEach((j, i) => {
    const row = rows.get(j.id) ?? newRow(j.id);
    renderRow(row, j, at);
    if ($("rows").children[i] !== row) $("rows").insertBefore(row, $("rows").children[i] ?? null);
  });
  $("list").classList.toggle("requests", jobs.some(requestLine));
  show("list", jobs.length > 0);
  show("more", next !== "");
  show("all", prefix !== "");
  const failed = $("filter-state").value === "failed" && jobs.length > 0 && prefix === "";
  for (const name of ["again-all", "discard-all"]) show(name, failed);
}

function newRow(id) {
  const row = make("tr");
  const button = make("button", "link", id.slice(0, 8) + "…");
  button.type = "button";
  button.setAttribute("aria-label", "Job " + id.slice(0, 8));
  row.append(make("th"), make("td"), make("td", "request"), make("td", "accepted"), make("td", "took"), make("td", "took"));
  row.cells[0].scope = "row";
  row.cells[0].append(button);
  row.cells[1].append(make("span"));
  row.cells[2].append(make("span"));
  row.addEventListener("click", () => choose(id));
  rows.set(id, row);
  return row;
}

function renderRow(row, j, at) {
  const put = (e, value) => { if (e.textContent !== value) e.textContent = value; };
  const state = row.cells[1].firstChild;
  state.className = "state " + stateClass(j.state);
  put(state, j.state);
  put(row.cells[2].firstChild, requestLine(j) || DASH);
  put(row.cells[3], clock(j.accepted_at));
  put(row.cells[4], took(waited(j, at)));
  put(row.cells[5], took(ran(j, at)));
  row.classList.toggle("chosen", j.id === shown?.id);
}

// What is said of a job

const stateClass = (state) => states.includes(state) ? state : "";
const requestLine = (j) => j.request ? [j.request.method, j.request.target].filter(Boolean).join(" ") : "";

// seconds returns the time from one stamp to another, or if that is not there yet,
// until at, which is the server's clock.
const seconds = (from, to, at) => from ? Math.max(0, (to ? Date.parse(to) : at) - Date.parse(from)) / 1000 : null;
const waited = (j, at) => seconds(j.accepted_at, j.started_at || j.ended_at, at);
const ran = (j, at) => seconds(j.started_at, j.ended_at, at);

// The stamps are to the millisecond.
const took = (s) => s === 0 ? "< 1" + THIN + "ms" : duration(s);

function clock(stamp) {
  if (!stamp) return DASH;
  const t = new Date(stamp);
  return t.toDateString() === new Date().toDateString() ? t.toLocaleTimeString() : t.toLocaleString();
}

// One job

async function choose(id) {
  if (shown?.id !== id) {
    shown = { id };
    for (const name of ["job-status", "job-error"]) text(name, "");
    headOf = "";
    show("response", false);
  }
  history.replaceState(null, "", "#" + id);
  const found = await refresh();
  if (found && shown?.id === id) $("job-title").focus({ preventScroll: !matchMedia("(max-width: 1080px)").matches });
}

// refresh asks for the job that is shown, and reports whether it is there.
async function refresh() {
  const { id } = shown;
  try {
    const { answer, at } = await send("GET", "jobs/" + id);
    if (shown?.id !== id) return false;
    shown = answer;
    text("find-error", "");
    renderJob(at);
    if (answer.state !== "done" && answer.state !== "failed") {
      show("response", false);
      headOf = "";
    } else if (headOf !== id) {
      await loadHead(id).catch((err) => { if (err.status !== 409) throw err; }); // it failed without a response
    }
    return true;
  } catch (err) {
    if (shown?.id !== id) return false;
    if (err.status === 404) dismiss(); // or its old state would seem to be the present one
    text("find-error", err.message);
    return false;
  }
}

function renderJob(at) {
  const j = shown;
  show("job", true);
  text("job-id", j.id);
  text("job-state", j.state);
  $("job-state").className = "state big " + stateClass(j.state);
  text("job-why", j.error ? sentence(j.error) : "");
  show("job-why", !!j.error);
  text("job-request", requestLine(j));
  show("job-request-row", requestLine(j) !== "");
  text("job-route", j.request?.route ?? "");
  show("job-route-row", !!j.request?.route);
  text("job-accepted", clock(j.accepted_at));
  text("job-started", clock(j.started_at));
  text("job-ended", clock(j.ended_at));
  text("job-expires", clock(j.expires_at));
  text("job-waited", took(waited(j, at)));
  text("job-ran", took(ran(j, at)));
  text("job-attempts", String(j.attempts ?? ""));
  show("job-attempts-row", !!j.attempts);
  text("job-next", clock(j.next_attempt_at) + (j.last_status ? `, after a ${j.last_status}` : ""));
  show("job-next-row", !!j.next_attempt_at);
  if (document.activeElement === $("cancel") && !OPEN.includes(j.state)) $("job-title").focus();
  show("cancel", OPEN.includes(j.state));
  for (const name of ["again", "discard"]) show(name, j.state === "failed");
  for (const [id, row] of rows) row.classList.toggle("chosen", id === j.id);
}

async function loadHead(id) {
  const { answer } = await send("GET", `jobs/${id}/head`);
  if (shown?.id !== id) return;
  const lines = [`${answer.status} ${answer.reason}`.trim()];
  for (const name of Object.keys(answer.header).sort()) {
    for (const value of answer.header[name] ?? []) lines.push(`${name}: ${value}`);
  }
  text("response-head", lines.join("\n"));
  $("response-body").href = address(`jobs/${id}/response`);
  headOf = id;
  show("response", true);
}

function dismiss() {
  shown = null;
  show("job", false);
  history.replaceState(null, "", location.pathname + location.search);
  for (const row of rows.values()) row.classList.remove("chosen");
}

async function cancel() {
  const { id } = shown;
  $("cancel").disabled = true;
  text("job-error", "");
  text("job-status", "");
  let said = "", failed = "";
  try {
    const { status } = await send("DELETE", "jobs/" + id);
    said = status === 200 ? "Canceled." : "Told to stop. The job is running until its handler has noticed.";
  } catch (err) {
    failed = err.message;
  }
  $("cancel").disabled = false;
  if (shown?.id !== id) return;
  text("job-status", said);
  text("job-error", failed);
  await refresh();
  if (!prefix) load();
}

// again runs a job again that has failed.
async function again() {
  const { id } = shown;
  await change(id, () => send("POST", `jobs/${id}/retry`), "It runs again.");
}

async function discard() {
  const { id } = shown;
  const gone = await change(id, () => send("DELETE", "jobs/" + id), "");
  if (gone && shown?.id === id) dismiss();
  if (!prefix) load();
}

// change does something with the job that is shown, says how that went, and reports
// whether it went well.
async function change(id, act, said) {
  const buttons = [$("again"), $("discard")];
  for (const b of buttons) b.disabled = true;
  for (const name of ["job-status", "job-error"]) text(name, "");
  let failed = "";
  try {
    await act();
  } catch (err) {
    failed = err.message;
  }
  for (const b of buttons) b.disabled = false;
  if (shown?.id !== id) return !failed;
  text("job-status", failed ? "" : said);
  text("job-error", failed);
  if (said || failed) await refresh();
  if (!prefix) load();
  return !failed;
}

// changeAll does something with all jobs that have failed, after a question.
async function changeAll(method, url, question, said) {
  if (!confirm(question)) return;
  for (const name of ["list-status", "list-error"]) text(name, "");
  let status = "", failed = "";
  try {
    const { answer } = await send(method, url);
    status = said(Object.values(answer)[0]);
  } catch (err) {
    failed = err.message;
  }
  await load();
  text("list-status", status);
  text("list-error", failed);
  if (shown?.state === "failed") await refresh();
}

// What the operator does

$("filter").addEventListener("submit", (e) => e.preventDefault());
$("filter-state").addEventListener("change", () => load());
$("more").addEventListener("click", () => load(next));
$("all").addEventListener("click", () => { $("find-id").value = ""; load(); });
$("cancel").addEventListener("click", cancel);
$("again").addEventListener("click", again);
$("discard").addEventListener("click", discard);
$("again-all").addEventListener("click", () => changeAll("POST", "jobs/retry?state=failed",
  "Run all jobs again that have failed?", (n) => `${plural(n, "job runs", "jobs run")} again.`));
$("discard-all").addEventListener("click", () => changeAll("DELETE", "jobs?state=failed",
  "Discard all jobs that have failed? They cannot be had back.", (n) => `${plural(n, "job was", "jobs were")} discarded.`));
$("close").addEventListener("click", () => {
  const button = rows.get(shown?.id)?.querySelector("button");
  dismiss();
  (button ?? $("find-id")).focus();
});

$("find").addEventListener("submit", (e) => {
  e.preventDefault();
  text("find-error", "");
  const typed = $("find-id").value.trim();
  const id = typed.replace(/^.*\/jobs\//, "").replace(/\/.*$|…$/, "").toUpperCase();
  if (!/^[A-Z2-7]+$/.test(id) || id.length < LEAST_PREFIX || id.length > ID_LENGTH) {
    text("find-error", `An id has ${ID_LENGTH} letters A to Z and digits 2 to 7; want all of it, or at least the first ${LEAST_PREFIX}.`);
  } else if (id.length === ID_LENGTH) {
    choose(id);
  } else {
    search(id);
  }
});

function openFragment() {
  const id = location.hash.slice(1);
  if (id && id !== shown?.id) choose(id);
}
addEventListener("hashchange", openFragment);

// update shows the list and the job as they are now, as long as that moves nothing
// away: a search, or more pages than the first, stay as they are. What a long list
// costs the server is bounded by the pause.
async function update() {
  const began = Date.now();
  if (!document.hidden && $("follow").checked) {
    if (!prefix && !loading && jobs.length <= PAGE) await load();
    if (shown?.state && OPEN.includes(shown.state)) await refresh();
  }
  setTimeout(update, Math.max(PERIOD, 20 * (Date.now() - began)));
}

load();
openFragment();
setTimeout(update, PERIOD);
