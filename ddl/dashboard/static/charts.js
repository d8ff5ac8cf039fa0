"use strict";
// Charts: uPlot with smoothed curves over raw ones, a range that outliers do not decide, and failures as vertical lines.

const PALETTE = ["#2f6fed", "#e8743b", "#1b9e77", "#d6336c", "#8250df", "#0ea5b7", "#b7860b", "#6b7f99", "#c2410c", "#4d7c0f",
  "#db2777", "#0369a1", "#7c3aed", "#059669", "#9f1239", "#a16207", "#1d4ed8", "#be185d", "#0f766e", "#78716c"];
const BRIGHT = ["#7aa7ff", "#ff9d66", "#4fd1a5", "#ff7ab2", "#b794ff", "#4fd3e6", "#f2c14e", "#a9b8cc", "#ff8552", "#a3d14f",
  "#ff8ad1", "#58b4f0", "#a98bff", "#3fdc97", "#ff7a93", "#e0b03e", "#8fb0ff", "#ff6fa5", "#38cbbd", "#c3bbb4"];
const hueAt = (at) => (document.documentElement.dataset.theme === "dark" ? BRIGHT : PALETTE)[at % PALETTE.length];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const faded = (colour, share) => colour + Math.round(255 * share).toString(16).padStart(2, "0");

function short(value) {
  if (value == null || !isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toFixed(size >= 1e7 ? 0 : 1) + " M";
  if (size >= 1e4) return Math.round(value / 1e3) + " k";
  if (size && size < 1e-4) return value.toExponential(1).replace("e-", "e−");
  return String(+value.toPrecision(4));
}
const isShare = (name) => /(^|_)(accuracy|top\d+|precision|recall|f1)$/.test(name);
const metric = (name, value) => (value == null ? "–" : isShare(name) ? (100 * value).toFixed(2) + " %" : short(value));
function duration(seconds) {
  if (seconds < 60) return seconds.toFixed(seconds < 10 ? 1 : 0) + " s";
  const m = Math.floor(seconds / 60), s = Math.round(seconds % 60), h = Math.floor(m / 60);
  return h ? `${h} h ${m % 60} min` : `${m} min ${s} s`;
}

// Means over the neighbours on both sides, which count less the further away they are: the curve does not lag.
function smooth(values, span) {
  const keep = Math.exp(-1 / Math.max(span, 1e-9));
  const pass = (order) => {
    const sums = new Array(values.length), weights = new Array(values.length);
    let sum = 0, weight = 0;
    for (const at of order) {
      sum *= keep; weight *= keep;
      sums[at] = sum; weights[at] = weight;
      if (values[at] != null) { sum += values[at]; weight += 1; }
    }
    return [sums, weights];
  };
  const order = [...values.keys()], [before, those] = pass(order), [after, these] = pass(order.reverse());
  return values.map((value, at) => {
    const own = value == null ? 0 : 1, weight = those[at] + these[at] + own;
    return weight ? (before[at] + after[at] + (own ? value : 0)) / weight : null;
  });
}

// The range of the y axis: that of each curve without the few values of its first steps that would flatten the rest.
function robust(rows, isLog, fromZero) {
  const ranges = rows.map((row) => bulk(row.filter((value) => value != null && isFinite(value) && !(isLog && value <= 0)), isLog || fromZero)).filter(Boolean);
  if (!ranges.length) return isLog ? [0.1, 1] : [0, 1];
  const highs = ranges.map((one) => one[1]).sort((a, b) => a - b), middle = highs[highs.length >> 1];
  const low = Math.min(...ranges.map((one) => one[0]));
  let high = highs[highs.length - 1];
  if (ranges.length > 4 && !isLog && low >= 0 && middle > 0) high = Math.min(high, 4 * middle);  // a run that diverged
  if (isLog) return [low / 1.15, high * 1.15];
  if (fromZero) return [-0.01 * high, 1.08 * high || 1];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low >= 0 && low < 0.35 * high ? -0.02 * high : low - room, high + room];
}

// [least, largest] of a curve's values; unless `isWhole`, without extreme twentieths that would flatten the rest.
function bulk(values, isWhole) {
  if (!values.length) return null;
  values.sort((a, b) => a - b);
  const at = (share) => values[Math.min(values.length - 1, Math.floor(share * values.length))];
  let low = values[0], high = values[values.length - 1];
  if (isWhole) return [low, high];
  const upper = at(0.95), lower = at(0.05);
  if (high - low > 2.5 * (upper - low) && upper > low) high = low + 1.6 * (upper - low);
  if (high - low > 2.5 * (high - lower) && lower < high) low = high - 1.6 * (high - lower);
  return [low, high];
}

// Vertical lines with a label at the top; labels that would overlap are left out.
function marks(entries) {
  return (u) => {
    const { ctx, bbox } = u, ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.beginPath(); ctx.rect(bbox.left, 0, bbox.width, bbox.top + bbox.height); ctx.clip();
    ctx.strokeStyle = ctx.fillStyle = css("--bad");
    ctx.textAlign = "left"; ctx.textBaseline = "alphabetic";
    ctx.lineWidth = 1.25 * ratio; ctx.font = `${10.5 * ratio}px system-ui, sans-serif`;
    let free = -Infinity;
    for (const { x, label } of entries) {
      const at = u.valToPos(x, "x", true);
      if (at < bbox.left || at > bbox.left + bbox.width) continue;
      ctx.setLineDash([4 * ratio, 3 * ratio]);
      ctx.globalAlpha = 0.8;
      ctx.beginPath(); ctx.moveTo(at, bbox.top); ctx.lineTo(at, bbox.top + bbox.height); ctx.stroke();
      const width = ctx.measureText(label).width;
      const start = Math.min(at - ratio, bbox.left + bbox.width - width);
      if (start > free) {
        ctx.globalAlpha = 1;
        ctx.fillText(label, start, bbox.top - 4 * ratio);
        free = start + width + 8 * ratio;
      }
    }
    ctx.restore();
  };
}

// A chart in `element`. curves: {label, colour, x, y, width, alpha, points, span}; they need not share their x.
class Chart {
  constructor(element, options) { this.element = element; this.options = options; this.plot = null; this.key = ""; }

  show(curves, { failures = [], log = false, time = false } = {}) {
    const known = curves.filter((one) => one.x.length && one.y.some((value) => value != null));
    if (!known.length) {
      this.plot?.destroy(); this.plot = null; this.key = "";
      this.element.replaceChildren(Object.assign(document.createElement("div"), { className: "empty", textContent: this.options.empty }));
      return;
    }
    const tables = known.map((one) => [one.x, one.y]);
    const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
    this.curves = known; this.marked = failures; this.log = log;
    // The range follows curves and points that are drawn whole, not the raw values behind them.
    const [from, to] = Chart.zoom || [-Infinity, Infinity];
    const seen = (one) => (Chart.zoom ? one.y.filter((value, at) => one.x[at] >= from && one.x[at] <= to) : one.y);
    this.range = robust(known.filter((one) => !one.isRaw).map(seen), log, this.options.fromZero);
    const key = JSON.stringify([known.map((one) => [one.label, one.colour, one.width, one.alpha, one.points]), log, time, css("--text")]);
    if (key === this.key) { this.plot.setData(data); return; }
    this.plot?.destroy();
    this.element.replaceChildren();
    this.key = key;
    const plot = this.plot = new uPlot(this.config(time), data, this.element);
    plot.over.addEventListener("mouseenter", () => { Chart.pointed = plot; });
    plot.over.addEventListener("dblclick", () => { Chart.zoom = null; Chart.changed(); });
    plot.over.addEventListener("mouseleave", () => { Chart.pointed = null; document.getElementById("tip").style.display = "none"; });
  }

  config(time) {
    const axis = { stroke: css("--dim"), grid: { stroke: css("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const format = this.options.format || short, ticks = this.options.ticks || format;
    return {
      width: this.element.clientWidth, height: this.options.height || 230, padding: [16, 14, 0, 0],
      cursor: { points: { size: 6 }, drag: { x: true, y: false, setScale: false }, sync: { key: "runs" } },
      legend: { show: false },
      scales: { x: { time: false, range: () => Chart.zoom || this.extent() }, y: { distr: this.log ? 3 : 1, range: () => this.range } },
      axes: [
        { ...axis, grid: { show: false }, size: 26, values: (u, all) => all.map((value) => (time ? duration(value) : short(value))) },
        { ...axis, size: 56, gap: 6, values: (u, all) => all.map((value) => (value == null ? "" : ticks(value))) },
      ],
      series: [{}, ...this.curves.map((one) => ({
        label: one.label, stroke: one.alpha ? faded(one.colour, one.alpha) : one.colour, width: one.width ?? 1.75, spanGaps: true,
        paths: one.points ? () => null : undefined,
        points: { show: !!one.points, size: one.points || 0, fill: one.isRing ? css("--card") : one.colour, stroke: one.colour, width: one.isRing ? 2 : 0 },
      }))],
      hooks: { setSelect: [(u) => this.select(u)], draw: [(u) => marks(this.marked)(u)], setCursor: [(u) => this.tip(u, time, format)] },
    };
  }

  // Dragging chooses a range of x for all charts; a double click shows all of it again.
  select(u) {
    const { left, width } = u.select;
    if (width < 5 || u !== Chart.pointed) return;
    Chart.zoom = [u.posToVal(left, "x"), u.posToVal(left + width, "x")];
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    Chart.changed();
  }

  extent() {
    let low = Infinity, high = -Infinity;
    for (const one of this.curves) { low = Math.min(low, one.x[0]); high = Math.max(high, one.x[one.x.length - 1]); }
    return high > low ? [low, high] : [low - 1, high + 1];
  }

  tip(u, time, format) {
    const tip = document.getElementById("tip");
    if (u !== Chart.pointed || u.cursor.left < 0) return;  // the cursors of the other charts follow this one
    const at = u.posToVal(u.cursor.left, "x"), lines = [];
    for (const one of this.curves) {
      if (one.isRaw) continue;
      let low = 0, high = one.x.length - 1;
      while (low < high) { const middle = (low + high + 1) >> 1; if (one.x[middle] <= at) low = middle; else high = middle - 1; }
      if (one.y[low] != null) lines.push([one.label, one.colour, one.y[low]]);
    }
    if (lines.length > 8) {  // those next to the pointer
      const value = u.posToVal(u.cursor.top, "y");
      lines.sort((a, b) => Math.abs(a[2] - value) - Math.abs(b[2] - value));
      lines.length = 8;
    }
    lines.sort((a, b) => b[2] - a[2]);
    tip.replaceChildren(line(time ? duration(at) : `${this.options.axis()} ${short(Math.round(at * 100) / 100)}`),
      ...lines.map(([label, colour, value]) => line(label, format(value), colour)));
    tip.style.display = "block";
    const box = u.over.getBoundingClientRect(), x = box.left + u.cursor.left;
    tip.style.left = `${x + tip.offsetWidth + 20 > innerWidth ? x - tip.offsetWidth - 14 : x + 14}px`;
    tip.style.top = `${Math.min(box.top + u.cursor.top, innerHeight - tip.offsetHeight - 8)}px`;
  }
}

Chart.zoom = null;
Chart.pointed = null;
Chart.changed = () => {};

function line(text, value, colour) {
  const row = document.createElement("div");
  if (colour) { const chip = document.createElement("i"); chip.style.background = colour; row.append(chip); }
  const label = document.createElement("span"); label.textContent = text; row.append(label);
  if (value != null) { const bold = document.createElement("b"); bold.textContent = value; row.append(bold); }
  return row;
}

// The map: a row for each shard, its colour is the rank that computes it; failures are lines with their recovery times.
function drawMap(canvas, run, colourOf, failures) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * ratio; canvas.height = height * ratio;
  const ctx = canvas.getContext("2d");
  ctx.scale(ratio, ratio);
  ctx.font = "11px system-ui, sans-serif";
  const left = 62, right = 12, top = 18, bottom = 22, inner = width - left - right, tall = height - top - bottom;
  const plans = run.plans, first = plans.length ? plans[0][0] : 0, last = Math.max(run.step || 1, first + 1, plans.length ? plans[plans.length - 1][0] + 1 : 1);
  const shards = Math.max(...plans.map(([, owners]) => owners.length), 0);
  ctx.fillStyle = css("--faint"); ctx.textBaseline = "middle";
  if (!shards) { ctx.textAlign = "center"; ctx.fillText("the ledger has no step yet", width / 2, height / 2); return; }
  const x = (step) => left + (inner * (step - first)) / (last - first), gap = tall / shards > 5 ? 1 : 0;
  plans.forEach(([from, owners], number) => {
    const to = number + 1 < plans.length ? plans[number + 1][0] : last;
    owners.forEach((owner, shard) => {
      ctx.fillStyle = colourOf(owner);
      ctx.globalAlpha = 0.88;
      ctx.fillRect(x(from), top + (tall * shard) / shards, Math.max(x(to) - x(from), 1), tall / shards - gap);
    });
  });
  ctx.globalAlpha = 1;
  ctx.fillStyle = css("--dim"); ctx.textAlign = "right";
  for (const shard of [0, shards - 1]) ctx.fillText(`shard ${shard}`, left - 8, top + (tall * (shard + 0.5)) / shards);
  ctx.textAlign = "center"; ctx.textBaseline = "top";
  const parts = Math.min(6, last - first);
  for (let tick = 0; tick <= parts; tick++) {
    const step = Math.round(first + ((last - first) * tick) / parts);
    ctx.textAlign = tick === 0 ? "left" : tick === parts ? "right" : "center";
    ctx.fillText(tick === 0 ? `step ${step}` : short(step), x(step), height - bottom + 6);
  }
  ctx.textAlign = "left";
  let free = -Infinity;
  for (const { step, label } of failures) {
    if (step < first || step > last) continue;
    ctx.strokeStyle = css("--card"); ctx.lineWidth = 4; ctx.beginPath(); ctx.moveTo(x(step), top); ctx.lineTo(x(step), top + tall); ctx.stroke();
    ctx.strokeStyle = ctx.fillStyle = css("--bad"); ctx.lineWidth = 1.5; ctx.beginPath(); ctx.moveTo(x(step), top - 3); ctx.lineTo(x(step), top + tall); ctx.stroke();
    const wide = ctx.measureText(label).width, start = Math.min(x(step) - 1, width - wide - right);
    if (start > free) { ctx.fillText(label, start, 1); free = start + wide + 8; }
  }
}
