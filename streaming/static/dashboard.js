/** The dashboard: draws the snapshots that `GET /v1/dashboard` streams, twice a second. */

import * as key from "./key.js";
import { map, plot, resolved } from "./plot.js";
import { element } from "./view.js";

const $ = (id) => document.getElementById(id);
const WINDOW_S = 180;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5000;

let past = []; // one entry a second
let pause = FIRST_PAUSE_MS;

/** Server-sent events, read by hand: an EventSource could not send a key. */
async function follow() {
  const reply = await key.request("v1/dashboard");
  if (!reply.ok) throw new Error(`the server answers with ${reply.status}`);
  let rest = "";
  for await (const piece of reply.body.pipeThrough(new TextDecoderStream())) {
    const events = (rest + piece).split("\n\n");
    rest = events.pop();
    for (const event of events) if (event.startsWith("data: ")) show(JSON.parse(event.slice(6)));
    pause = FIRST_PAUSE_MS;
  }
}

function show(now) {
  for (const second of now.seconds) {
    const index = past.findIndex((other) => other.at === second.at);
    if (index >= 0) past[index] = second;
    else past.push(second);
  }
  past = past.sort((a, b) => a.at - b.at).slice(-WINDOW_S);
  showState(now.state);
  $("model").textContent = now.model;
  $("totals").textContent = `${count(now.generated_tokens)} tokens written · ${count(now.prompt_tokens)} read · ${ended(now)}`;
  showNumbers(now);
  showPlots();
  showSeats(now);
  showPages(now);
}

function showState(state) {
  $("state").textContent = state;
  $("state").className = state;
}

function ended({ finished }) {
  const all = Object.values(finished).reduce((sum, number) => sum + number, 0);
  return `${count(all)} answer${all === 1 ? "" : "s"} ended`;
}

function showNumbers(now) {
  const { recent } = now;
  const hits = now.prefix_queries ? Math.round((100 * now.prefix_hits) / now.prefix_queries) : 0;
  const used = now.pages_total ? Math.round((100 * now.pages_used) / now.pages_total) : 0;
  const numbers = [
    ["Tokens per second", count(recent.tokens), "last 10 s"],
    ["Running", `${now.running}`, `of ${now.max_rows} seats`],
    ["Waiting", `${now.waiting}`, ""],
    ["First token", time(recent.first_token_s?.p50), recent.first_token_s ? `p99 ${time(recent.first_token_s.p99)}` : ""],
    ["Gap", time(recent.gap_s?.p50), recent.gap_s ? `p99 ${time(recent.gap_s.p99)}` : ""],
    ["KV pages in use", `${used} %`, `of ${count(now.pages_total)}`],
    ["From prefix cache", `${hits} %`, "of prompt tokens"],
  ];
  const cells = numbers.map(([name, value, note]) =>
    element("div", {
      children: [
        element("dt", { textContent: name }),
        element("dd", { children: [value, " ", element("small", { textContent: note })] }),
      ],
    }),
  );
  $("numbers").replaceChildren(...cells);
}

function showPlots() {
  const accent = resolved("--accent");
  plot($("tokens"), [{ values: past.map(({ tokens }) => tokens), color: accent, fill: true }], { format: count });
  for (const [id, field] of [
    ["first", "first_token_s"],
    ["gap", "gap_s"],
  ]) {
    const shares = ["p50", "p90", "p99"];
    const series = shares.map((share) => ({
      values: past.map((second) => second[field]?.[share] ?? null),
      color: getComputedStyle(legend(id, share)).color,
    }));
    plot($(id), series.reverse(), { format: time });
  }
}

/** The legend's entry, which holds the colour of its line. */
function legend(id, share) {
  const place = $(id).closest("figure").querySelector(".key");
  if (!place.children.length)
    place.append(...["p50", "p90", "p99"].map((name) => element("i", { className: name, textContent: name })));
  return place.querySelector(`.${share}`);
}

const hue = (slot) => `hsl(${(slot * 137.5 + 28) % 360} 52% 48%)`;

function showSeats(now) {
  $("seats-count").textContent = `${now.running} of ${now.max_rows}`;
  const rows = $("seats").children;
  now.seats.sort((a, b) => a.slot - b.slot).forEach((seat, index) => {
    const row = rows[index] ?? $("seats").appendChild(emptySeat());
    fillSeat(row, seat);
  });
  while (rows.length > now.seats.length) rows[rows.length - 1].remove();
  const waiting = now.waiting ? `${now.waiting} wait for a seat.` : "Nobody waits.";
  $("queue").textContent = now.seats.length ? waiting : `Every seat is free. ${now.waiting ? waiting : ""}`;
}

function emptySeat() {
  const [prompt, done] = [element("span", { className: "prompt" }), element("span", { className: "done" })];
  return element("li", {
    children: [
      element("span", { className: "slot" }),
      element("div", { className: "track", children: [prompt, done] }),
      element("span", { className: "about" }),
    ],
  });
}

function fillSeat(row, seat) {
  const [slot, track, about] = row.children;
  const [prompt, done] = track.children;
  slot.textContent = seat.slot;
  slot.style.background = prompt.style.background = done.style.background = hue(seat.slot);
  if (!seat.limit) {
    prompt.style.width = "100%";
    done.style.width = "0";
    row.title = "";
    about.textContent = "another key's";
    return;
  }
  const reading = seat.computed < seat.prompt_len;
  const share = (tokens) => `${(100 * tokens) / seat.limit}%`;
  prompt.style.width = share(reading ? seat.computed : seat.prompt_len);
  done.style.left = share(seat.prompt_len);
  done.style.width = share(seat.num_tokens - seat.prompt_len);
  const written = `${count(seat.num_tokens - seat.prompt_len)} of ≤ ${count(seat.limit - seat.prompt_len)}`;
  const state = reading ? `reading ${count(seat.computed)} of ${count(seat.prompt_len)}` : `${written} tokens`;
  about.textContent = `${state} · ${seat.key || `…${seat.id.slice(-6)}`}`;
  row.title = `${seat.id}: ${seat.prompt_len} tokens of prompt`;
}

function showPages(now) {
  const cached = resolved("--line");
  const colors = now.pages.map((cell) => (cell >= 0 ? hue(cell) : cell === -2 ? cached : cell === -1 ? resolved("--muted") : null));
  $("pages-count").textContent = now.pages_per_cell > 1 ? `${now.pages_per_cell} to a square` : "";
  map($("pages"), colors);
  if ($("pages-key").children.length) return;
  const swatch = (color, text) => {
    const square = element("i");
    square.style.background = color;
    return [square, text];
  };
  $("pages-key").append(
    ...swatch("var(--accent)", "by seat"),
    ...swatch("var(--muted)", "pinned or leaving"),
    ...swatch("var(--line)", "cached"),
    ...swatch("var(--panel)", "free"),
  );
}

function count(number) {
  if (number < 10_000) return String(Math.round(number * 10) / 10);
  return number < 1e6 ? `${(number / 1e3).toFixed(0)}k` : `${(number / 1e6).toFixed(1)}M`;
}

function time(seconds) {
  if (seconds == null) return "–";
  if (seconds === 0) return "0";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
}

for (;;) {
  try {
    await follow();
  } catch (error) {
    console.warn(error);
  }
  showState("reconnecting");
  await new Promise((resolve) => setTimeout(resolve, pause));
  pause = Math.min(LONGEST_PAUSE_MS, 2 * pause);
}
