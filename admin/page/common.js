"use strict";

// What the pages share. Text from the server goes into a page as text alone.

const $ = (id) => document.getElementById(id);

// Numbers

const DASH = "–";
const THIN = "\u202f";
const UNITS = [["µs", 1e-6, 1000], ["ms", 1e-3, 1000], ["s", 1, 60], ["min", 60, 60], ["h", 3600, 48], ["d", 86400, Infinity]];

const count = (n) => n == null ? DASH : String(Math.round(n)).replace("-", "−").replace(/\B(?=(\d{3})+$)/g, THIN);
const decimal = (n) => n == null ? DASH : Math.abs(n) >= 99.95 || n % 1 === 0 ? count(n) : n.toFixed(1).replace("-", "−");
const percent = (n) => n == null ? DASH : decimal(n * 100) + THIN + "%";
const per = (n) => n == null ? DASH : decimal(n) + "/s";
const plural = (n, one, many) => count(n) + " " + (n === 1 ? one : many);

function duration(s) {
  if (!s) return s === 0 ? "0" + THIN + "s" : DASH;
  for (const [unit, size, limit] of UNITS) {
    const v = s / size;
    if (Math.round(v) < limit) return (v < 9.95 && v % 1 ? v.toFixed(1) : count(v)) + THIN + unit;
  }
}

function bytes(n) {
  if (n == null) return DASH;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1023.5 && i < units.length - 1; i++) n /= 1024;
  return (i > 0 && n < 99.95 ? n.toFixed(1) : count(n)) + THIN + units[i];
}

// Elements

// text writes only what has changed, which leaves a selection and the layout alone.
function text(id, value) {
  const e = $(id);
  if (e.textContent !== value) e.textContent = value;
}

function show(id, visible) { $(id).hidden = !visible; }

function make(tag, className, content) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (content != null) e.textContent = content;
  return e;
}

// items gives the element n children, and keeps those it has.
function items(e, n, tag) {
  while (e.children.length > n) e.lastElementChild.remove();
  while (e.children.length < n) e.append(make(tag));
  return e.children;
}

// The server

// address returns the URL of a path of this listener. It is relative to the page, so
// that the pages work below any prefix. A password in the page's own URL is left out,
// since fetch refuses it.
function address(path) {
  const url = new URL(path, document.baseURI);
  url.username = url.password = "";
  return url.href;
}

// send returns the server's answer and its status, or throws an Error whose message
// can be shown.
async function send(method, path, message) {
  let response;
  try {
    response = await fetch(address(path), {
      method,
      headers: message && { "Content-Type": "application/json" },
      body: message && JSON.stringify(message),
      signal: AbortSignal.timeout(10000),
    });
  } catch {
    throw new Error("The server did not answer." + (method === "GET" ? "" : " Nothing is known to have changed."));
  }
  const answer = await response.json().catch(() => null);
  if (response.ok) return { status: response.status, answer, at: Date.parse(response.headers.get("Date")) || Date.now() };
  const error = new Error(sentence(answer?.detail || answer?.title) || `The server answered ${response.status}.`);
  error.status = response.status;
  throw error;
}

// sentence makes a sentence of a problem's detail.
const sentence = (detail) => detail && detail[0].toUpperCase() + detail.slice(1) + (/[.!?]$/.test(detail) ? "" : ".");
