"use strict";
// The page: polls the runs, and shows the chosen ones in charts and one of them in detail.

const POLL_MS = 2000;
const byId = (name) => document.getElementById(name);
const make = (tag, values = {}, ...children) => { const made = Object.assign(document.createElement(tag), values); made.append(...children); return made; };
const view = { runs: [], details: new Map(), ticked: null, focus: location.hash.slice(1) ? decodeURIComponent(location.hash.slice(1)) : null, axis: "step", scale: "linear" };
const charts = {};

function setTheme(name) { document.documentElement.dataset.theme = name; }
setTheme(new URLSearchParams(location.search).get("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
byId("theme").onclick = () => { setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); show(); };
for (const name of ["axis", "scale"]) {
  byId(name).onclick = (event) => {
    if (!event.target.dataset.value) return;
    view[name] = event.target.dataset.value;
    if (name === "axis") Chart.zoom = null;
    for (const button of byId(name).children) button.classList.toggle("on", button === event.target);
    show();
  };
}
Chart.changed = show;
byId("all").onclick = () => { view.ticked = new Set(view.runs.map((run) => run.id)); load().then(show); };
byId("none").onclick = () => { view.ticked = new Set(); show(); };
addEventListener("resize", () => { for (const chart of Object.values(charts)) chart.key = ""; show(); });

const colour = (id) => hueAt(view.runs.findIndex((run) => run.id === id));
const rankColour = hueAt;
const when = (seconds) => new Date(1000 * seconds).toLocaleTimeString([], { hour12: false });

async function poll() {
  let isComplete = true;
  try {
    const answer = await (await fetch("api/runs")).json();
    isComplete = answer.complete;
    view.runs = answer.runs;
    byId("folder").textContent = answer.folder;
    byId("count").textContent = `${answer.runs.length} run${answer.runs.length === 1 ? "" : "s"}`;
    if (!view.ticked) view.ticked = new Set(view.runs.map((run) => run.id));
    if (!view.runs.some((run) => run.id === view.focus)) {
      const newest = [...view.runs].sort((a, b) => (b.status === "running") - (a.status === "running") || (b.began || 0) - (a.began || 0));
      view.focus = newest.length ? newest[0].id : null;
    }
    document.title = view.runs.length === 1 ? `${view.runs[0].name} – ddl` : "ddl";
    await load();
    show();
  } catch (error) {
    byId("notes").textContent = `the server does not answer (${error.message}): ddl dashboard has ended, or the connection is lost`;
  }
  setTimeout(poll, isComplete ? POLL_MS : 100);
}

// The details of the chosen runs, where they have changed.
async function load() {
  const wanted = view.runs.filter((run) => view.ticked.has(run.id) || run.id === view.focus);
  await Promise.all(wanted.map(async (run) => {
    const known = view.details.get(run.id);
    if (known && known.version === run.version) return;
    const answer = await fetch(`api/run?id=${encodeURIComponent(run.id)}&version=${known ? known.version : -1}`);
    if (!answer.ok) return;
    const found = await answer.json();
    if (!found.unchanged) view.details.set(run.id, found);
  }));
}

function show() {
  showList();
  const run = view.details.get(view.focus);
  if (!run) { byId("name").textContent = view.runs.length ? "…" : "no run yet"; return; }
  Object.assign(run, view.runs.find((one) => one.id === view.focus));
  showHead(run);
  showCharts(run);
  const failures = failuresOf(run);
  drawMap(byId("map"), run, rankColour, failures);
  showRanks(run);
  showWaits(run);
  showFailures(run, failures);
}

function showList() {
  byId("runs").replaceChildren(...view.runs.map((run) => {
    const loss = run.validation.loss ?? run.loss, accuracy = run.validation.accuracy;
    const swatch = make("button", { className: "swatch" + (view.ticked.has(run.id) ? " on" : ""), title: "draw this run" });
    swatch.style.setProperty("--colour", colour(run.id));
    swatch.onclick = (event) => {
      event.stopPropagation();
      if (!view.ticked.delete(run.id)) view.ticked.add(run.id);
      load().then(show);
    };
    const more = make("div", { className: "more" }, make("span", { className: `status ${run.status}`, textContent: run.status }));
    if (run.lost) more.append(make("span", { textContent: `${run.lost} lost` }));
    if (run.id !== "." && run.id !== run.name) more.append(make("span", { textContent: run.id }));
    const meter = make("div", { className: "meter" }), bar = make("i");
    bar.style.width = `${run.steps ? Math.min(100, (100 * run.step) / run.steps) : 0}%`;
    meter.append(bar);
    const item = make("li", { className: run.id === view.focus ? "on" : "" }, swatch, make("span", { className: "name", textContent: run.name }),
      make("span", { className: "value", textContent: accuracy != null ? metric("accuracy", accuracy) : loss != null ? short(loss) : "" }), more, meter);
    item.tabIndex = 0;
    item.onkeydown = (event) => { if (event.key === "Enter" && event.target === item) item.click(); };
    item.onclick = () => { view.focus = run.id; location.hash = encodeURIComponent(run.id); load().then(show); };
    return item;
  }));
}

function tile(label, value, more = "", kind = "") {
  return make("div", { className: `tile ${kind}` }, make("span", { textContent: label }), make("b", { textContent: value }), make("small", { textContent: more || "\u00a0" }));
}

function showHead(run) {
  byId("name").replaceChildren(run.name + "  ", make("span", { className: `status ${run.status}`, textContent: run.status }));
  byId("notes").textContent = [...run.notes, run.summary.error, run.summary.warning].filter(Boolean).join(" · ");
  if (run.steps == null) { byId("about").textContent = run.folder; byId("tiles").replaceChildren(); return; }
  const ranks = Object.entries(run.hosts).map(([host, count]) => `${host}: ${count}`).join(", ");
  byId("about").textContent = [`${run.model}, ${short(run.parameters)} parameters, on ${run.device}`, ranks && `ranks on ${ranks}`, `${run.global_batch} samples per step`].filter(Boolean).join(" · ");
  const epochs = Math.ceil(run.steps / run.steps_per_epoch), epoch = Math.min(Math.ceil(run.step / run.steps_per_epoch) || 1, epochs);
  const best = run.best, took = run.recoveries.map((one) => one.seconds).sort((a, b) => a - b);
  const main = Object.keys(run.validation).find(isShare), wall = run.summary.wall_s;
  const bestText = best ? `epoch ${best.epoch}` + (run.summary.final?.checkpoint === "best" ? ", restored at the end" : "") : "";
  byId("tiles").replaceChildren(
    tile("epoch", `${epoch} / ${epochs}`, `step ${run.step.toLocaleString("en")} of ${run.steps.toLocaleString("en")}`),
    run.seconds_left != null ? tile("time left", duration(run.seconds_left), `until ${when(Date.now() / 1000 + run.seconds_left)}`) : tile("time", wall ? duration(wall) : "–", run.summary.stopped_early ? "stopped early" : run.status),
    tile("throughput", short(run.summary.samples_per_s || run.samples_per_s), "samples per second"),
    tile("best validation loss", best ? short(best.validation.loss) : "–", bestText),
    tile(main ? `validation ${main}` : "training loss", main ? metric(main, run.validation[main]) : short(run.loss), main && best ? `best epoch: ${metric(main, best.validation[main])}` : ""),
    tile("ranks", `${run.alive.length} of ${run.ranks ?? "?"}`, run.lost ? (took.length ? `recovered in ${Math.round(1000 * took[took.length >> 1])} ms` : `${run.lost} lost`) : "none was lost", run.lost ? "bad" : ""),
  );
}

// Step numbers or times as positions on the x axis.
function position(run, step, time) {
  if (view.axis === "step") return step;
  return view.axis === "epoch" ? step / run.steps_per_epoch : time - run.began;
}

function failuresOf(run) {
  return run.failures.map((failure) => {
    const after = run.recoveries.find((one) => one.time >= failure.time - 1e-3 && one.step === failure.step);
    return { ...failure, after, label: `rank ${failure.rank}` + (after ? ` · ${Math.round(1000 * after.seconds)} ms` : "") };
  });
}

function showCharts(focus) {
  const drawn = view.runs.filter((run) => view.ticked.has(run.id) && view.details.has(run.id)).map((run) => view.details.get(run.id));
  if (!drawn.some((run) => run.id === focus.id)) drawn.push(focus);
  drawn.sort((a, b) => (a.id === focus.id) - (b.id === focus.id));  // the one in focus is drawn last, on top
  const names = new Set();
  for (const run of drawn) for (const name of Object.keys(run.curves.curves)) names.add(name);
  for (const name of ["lr", "gradient_norm"]) names.delete(name);
  const metrics = ["loss", ...[...names].filter((name) => name !== "loss")].slice(0, 5);
  const panels = [...metrics.map((name) => ({ id: `m-${name}`, title: name[0].toUpperCase() + name.slice(1), name, isMetric: true })),
    { id: "lr", title: "Learning rate", name: "lr" }, { id: "rate", title: "Throughput", name: "rate", note: "samples per second" }];
  const area = byId("charts");
  if (area.dataset.panels !== panels.map((one) => one.id).join()) {
    area.dataset.panels = panels.map((one) => one.id).join();
    area.replaceChildren(...panels.map((panel) => {
      const title = make("h3", { textContent: panel.title });
      if (panel.note) title.append(make("small", { textContent: panel.note }));
      if (panel.isMetric) title.append(key());
      const body = make("div");
      charts[panel.id] = new Chart(body, { fromZero: !panel.isMetric, empty: "no values yet", format: (value) => metric(panel.name, value), ticks: (value) => (isShare(panel.name) ? `${+(100 * value).toFixed(2)} %` : short(value)), axis: () => view.axis });
      return make("article", {}, title, body);
    }));
  }
  const failures = failuresOf(focus).map((one) => ({ x: position(focus, one.step, one.time), label: one.label }));
  for (const panel of panels) {
    const curves = drawn.flatMap((run) => curvesOf(run, panel, run.id === focus.id, drawn.length));
    const log = view.scale === "log" && panel.name === "loss";
    charts[panel.id].show(curves, { failures, log, time: view.axis === "time" });
  }
}

function key() {
  return make("span", { className: "key" }, make("span", {}, make("i"), "training"), make("span", {}, make("i", { className: "dots" }), "validation"), make("span", {}, make("i", { className: "fail" }), "failure"));
}

function curvesOf(run, panel, isFocus, count) {
  const points = run.curves, hue = colour(run.id), own = points.curves[panel.name];
  const x = points.step.map((step, at) => position(run, step, points.time[at])), found = [];
  const label = count > 1 ? run.name + (run.id === run.name || run.id === "." ? "" : ` (${run.id})`) : "training";
  const strong = isFocus || count === 1, alpha = strong ? 0 : count > 8 ? 0.45 : 0.75, width = strong ? 2 : 1.25;
  if (panel.name === "rate") return [{ label, colour: hue, x, y: smooth(points.samples_per_s, Math.max(x.length / 100, 2)), width, alpha }];
  if (!own) return [];
  if (panel.name === "lr") return [{ label, colour: hue, x, y: own.mean, width, alpha }];
  if (strong) found.push({ label: "raw", colour: hue, x, y: own.mean, width: 1, alpha: 0.25, isRaw: true });
  found.push({ label, colour: hue, x, y: smooth(own.mean, Math.max(x.length / 120, 2)), width, alpha });
  const epochs = run.epochs.filter((one) => one.validation[panel.name] != null);
  if (strong && epochs.length) {
    found.push({ label: count > 1 ? `${run.name}, validation` : "validation", colour: count > 1 ? hue : hueAt(1), x: epochs.map((one) => position(run, one.step, one.time)), y: epochs.map((one) => one.validation[panel.name]), points: epochs.length > 120 ? 3 : 5 });
    const best = run.best;
    if (isFocus && best?.validation[panel.name] != null) {
      found.push({ label: `best epoch, ${best.epoch}`, colour: count > 1 ? hue : hueAt(1), x: [position(run, best.step, best.time)], y: [best.validation[panel.name]], points: 11, isRing: true });
    }
  }
  return found;
}

function showRanks(run) {
  const counts = new Map(run.alive.map((rank) => [rank, 0]));
  for (const owner of run.plans.length ? run.plans[run.plans.length - 1][1] : []) counts.set(owner, (counts.get(owner) || 0) + 1);
  const all = [...new Set([...counts.keys(), ...run.dead])].sort((a, b) => a - b);
  byId("ranks").replaceChildren(...all.map((rank) => {
    const chip = make("i"), isDead = run.dead.includes(rank);
    chip.style.background = rankColour(rank);
    return make("span", {}, chip, isDead ? make("s", { textContent: `rank ${rank}` }) : `rank ${rank}: ${counts.get(rank)} shards`);
  }));
}

function showWaits(run) {
  const chart = charts.waits ||= new Chart(byId("waits"), { fromZero: true, empty: "no epoch has ended yet", height: 220, format: (value) => `${short(value)} %`, axis: () => view.axis });
  const ranks = [...new Set(run.epochs.flatMap((one) => Object.keys(one.waited).map(Number)))].sort((a, b) => a - b);
  const curves = ranks.map((rank) => {
    const x = [], y = [];
    run.epochs.forEach((one, at) => {
      const before = at ? run.epochs[at - 1].time : run.launches[0]?.time;
      if (one.waited[rank] == null || !(one.time > before)) return;
      x.push(position(run, one.step, one.time));
      y.push(Math.min(100, (100 * one.waited[rank]) / (one.time - before)));
    });
    return { label: `rank ${rank}`, colour: rankColour(rank), x, y, width: 1.75, points: x.length === 1 ? 6 : 0 };
  });
  chart.show(curves, { failures: failuresOf(run).map((one) => ({ x: position(run, one.step, one.time), label: "" })), time: view.axis === "time" });
}

function showFailures(run, failures) {
  if (!failures.length) { byId("failures").replaceChildren(make("div", { className: "empty", textContent: "no rank was lost" })); return; }
  const head = make("tr", {}, ...["time", "step", "rank", "how", "recovered in"].map((text, at) => make("th", { textContent: text, className: at === 4 ? "number" : "" })));
  const rows = [...failures].reverse().slice(0, 100).map((one) => make("tr", {}, make("td", { textContent: when(one.time) }), make("td", { textContent: one.step }),
    make("td", { textContent: `${one.rank} on ${one.host}` }), make("td", { className: "text", textContent: one.how + (one.phase ? ` in ${one.phase}` : "") }),
    make("td", { className: "number", textContent: one.after ? `${Math.round(1000 * one.after.seconds)} ms` : "–" })));
  byId("failures").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

poll();
