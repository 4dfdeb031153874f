// Sorting, theme and plots; the table is whole and readable without any of it.
"use strict";

function sortBy(th) {
  const table = th.closest("table");
  const heads = [...th.parentElement.children];
  const column = heads.indexOf(th);
  const now = th.getAttribute("aria-sort");
  const order = now === "none" ? th.dataset.first : now === "ascending" ? "descending" : "ascending";
  heads.forEach((h) => h.setAttribute("aria-sort", h === th ? order : "none"));
  const sign = order === "ascending" ? 1 : -1;
  const number = th.dataset.kind === "number";
  const body = table.querySelector("tbody.sortable");
  const value = (row) => row.children[column].dataset.value;
  [...body.rows]
    .map((row, i) => ({ row, i, v: value(row) }))
    .sort((a, b) => {
      if (a.v === "" || b.v === "") return (a.v === "") - (b.v === "") || a.i - b.i; // blanks stay last either way
      return sign * (number ? a.v - b.v : a.v.localeCompare(b.v)) || a.i - b.i;
    })
    .forEach(({ row }) => body.append(row));
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(`--${name}`).trim();
  return Object.fromEntries(["ink", "soft", "line", "card", "accent", "teacher", "plain"].map((n) => [n, get(n)]));
}

function colourOf(row, c) {
  return row.role === "teacher" ? c.teacher : row.role === "plain" ? c.plain : c.accent;
}

function baseLayout(c) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: c.ink },
    hoverlabel: { bgcolor: c.card, bordercolor: c.line, font: { color: c.ink } },
    showlegend: false,
    dragmode: false,
  };
}

function axis(c, more) {
  return { gridcolor: c.line, linecolor: c.line, zeroline: false, fixedrange: true, ticks: "", automargin: false, ...more };
}

function padded(low, high, part) {
  const room = (high - low || Math.abs(high) || 1) * part;
  return [low - room, high + room];
}

// The scale of a metric's axis. Where lower is better it is turned, so that up is better in every plot, and it is
// logarithmic where the means differ much: an interval that would reach below 0 then ends near the lowest mean.
function measure(means, ends, lower, part) {
  const least = Math.min(...means), log = lower && least > 0 && Math.max(...means) >= 10 * least;
  const end = Math.max(least / 3, Math.min(...ends.filter((v) => v > 0)));
  const clipped = (v) => (log ? Math.max(v, end) : v);
  const at = (v) => (log ? Math.log10(clipped(v)) : v);
  const [low, high] = padded(at(Math.min(...ends)), at(Math.max(...ends)), part);
  return { log, clipped, at, low, high, axis: { type: log ? "log" : "linear", range: lower ? [high, low] : [low, high] } };
}

function heightOf(data) {
  return Math.max(300, 70 + 34 * data.rows.length);
}

function spread(data) {
  const ends = data.rows.flatMap((r) => [r.low, r.high, ...r.seeds]);
  return ends;
}

// Mean and interval of each method, best on top; the teacher's and plain student's means as dotted lines.
function dots(node, data) {
  const c = colours();
  const rows = [...data.rows].sort((a, b) => (data.higher ? a.mean - b.mean : b.mean - a.mean));
  const y = (i) => i;
  const x = measure(rows.map((r) => r.mean), spread(data), !data.higher, 0.05);
  const traces = [
    {
      type: "scatter", mode: "markers", hoverinfo: "skip", cliponaxis: false,
      x: rows.flatMap((r) => r.seeds), y: rows.flatMap((r, i) => r.seeds.map(() => y(i) - 0.27)),
      marker: { size: 4, color: rows.flatMap((r) => r.seeds.map(() => colourOf(r, c))), opacity: 0.5 },
    },
    {
      type: "scatter", mode: "markers", x: rows.map((r) => r.mean), y: rows.map((_, i) => y(i)), cliponaxis: false,
      marker: { size: 10, color: rows.map((r) => colourOf(r, c)), symbol: rows.map((r) => (r.flagged ? "circle-open" : "circle")) },
      text: rows.map((r) => r.hover), hoverinfo: "text", customdata: rows.map((r) => r.popover),
    },
  ];
  const bars = rows.map((r, i) => ({
    type: "line", x0: x.clipped(r.low), x1: r.high, y0: y(i), y1: y(i), layer: "below", line: { color: colourOf(r, c), width: 2.5 },
  }));
  const marks = rows.filter((r) => r.role !== "method").map((r) => ({
    type: "line", x0: r.mean, x1: r.mean, yref: "paper", y0: 0, y1: 1, layer: "below",
    line: { color: colourOf(r, c), width: 1, dash: "dot" },
  }));
  const longest = Math.max(...rows.map((r) => r.method.length));
  return Plotly.react(node, traces, {
    ...baseLayout(c),
    height: heightOf(data),
    margin: { l: Math.min(150, 16 + 7.2 * longest), r: 16, t: 10, b: 42 },
    xaxis: axis(c, { ...x.axis, range: [x.low, x.high], title: { text: data.title, font: { size: 12, color: c.soft }, standoff: 8 } }),
    yaxis: axis(c, { range: [-0.6, rows.length - 0.4], showgrid: false, tickvals: rows.map((_, i) => y(i)), ticktext: rows.map((r) => r.method.replace(/</g, "&lt;")) }),
    shapes: [...marks, ...bars],
  }, { displayModeBar: false, responsive: true });
}

// Places for labels so that none covers another: in order of height, pushed apart, then shifted back into the frame.
function places(wanted, step, low, high) {
  const order = wanted.map((v, i) => [v, i]).sort((a, b) => a[0] - b[0]);
  const at = [];
  order.forEach(([v], k) => at.push(k ? Math.max(v, at[k - 1] + step) : v));
  for (let k = at.length - 1, limit = high; k >= 0; k--, limit = at[k + 1] - step) at[k] = Math.min(at[k], limit);
  const under = at.length ? Math.max(0, low - at[0]) : 0;
  const result = new Array(wanted.length);
  order.forEach(([, i], k) => { result[i] = at[k] + under; });
  return result;
}

// What a method costs along x, how good it is along y: up and left is better.
function against(key, name, node, data) {
  const c = colours();
  const rows = data.rows.filter((r) => r[key] !== null);
  const costs = rows.map((r) => r[key]);
  const width = node.clientWidth, margin = { l: 54, r: 16, t: 14, b: 46 };
  const height = heightOf(data);
  const widest = Math.max(...costs), least = Math.min(...costs);
  const log = !data.higher && least > 0 && widest >= 10 * least;
  const across = (r) => (log ? Math.log10(r[key]) : r[key]);
  const xs = log ? padded(Math.log10(least), Math.log10(widest), 0.12) : [0, widest * 1.12];
  const y = measure(rows.map((r) => r.mean), rows.flatMap((r) => [r.low, r.high]), !data.higher, 0.06);
  const [under, over] = y.axis.range;
  const plotHeight = height - margin.t - margin.b, plotWidth = width - margin.l - margin.r;
  const pixel = (v) => margin.t + plotHeight * (over - y.at(v)) / (over - under);
  const annotations = [];
  for (const left of [false, true]) {
    const side = rows.filter((r) => (across(r) > xs[0] + 0.7 * (xs[1] - xs[0])) === left);
    const at = places(side.map((r) => pixel(r.mean)), 17, margin.t + 8, margin.t + plotHeight - 8);
    const edge = left ? Math.min(...side.map(across)) : Math.max(...side.map(across));
    side.forEach((r, i) => annotations.push({
      x: across(r), y: y.at(r.mean), text: r.method.replace(/</g, "&lt;"), font: { size: 12, color: colourOf(r, c) },
      // labels of a side stand in one column, else a label covers a neighbour's point
      ax: (left ? -26 : 26) + plotWidth * (edge - across(r)) / (xs[1] - xs[0]), ay: at[i] - pixel(r.mean),
      xanchor: left ? "right" : "left", showarrow: true, arrowhead: 0, arrowwidth: 0.8, arrowcolor: c.soft, standoff: 6,
    }));
  }
  const traces = [{
    type: "scatter", mode: "markers", x: costs, y: rows.map((r) => r.mean),
    marker: { size: 10, color: rows.map((r) => colourOf(r, c)), symbol: rows.map((r) => (r.flagged ? "circle-open" : "circle")) },
    text: rows.map((r) => r.hover), hoverinfo: "text", customdata: rows.map((r) => r.popover),
  }];
  const bars = rows.map((r) => ({
    type: "line", x0: r[key], x1: r[key], y0: y.clipped(r.low), y1: r.high, layer: "below", line: { color: colourOf(r, c), width: 1.5 }, opacity: 0.6,
  }));
  return Plotly.react(node, traces, {
    ...baseLayout(c), height, margin, annotations, shapes: bars,
    xaxis: axis(c, { type: log ? "log" : "linear", range: xs, title: { text: name, font: { size: 12, color: c.soft }, standoff: 8 } }),
    yaxis: axis(c, { ...y.axis, title: { text: data.title, font: { size: 12, color: c.soft }, standoff: 6 } }),
  }, { displayModeBar: false, responsive: true });
}

// Ticks that stand at least `room` pixels apart, the method's own value first.
function ticks(points, pixel, room) {
  const kept = [];
  for (const p of [...points].sort((a, b) => b.base - a.base)) {
    if (kept.every((k) => Math.abs(pixel(k.x) - pixel(p.x)) >= room)) kept.push(p);
  }
  return kept;
}

// One option of a method: numbers along the x axis, else one line a value; the plain student's mean dashed.
function ablation(node, data) {
  const c = colours();
  const nominal = data.axis === "nominal", log = data.axis === "log";
  const points = nominal ? data.points.map((p, i) => ({ ...p, x: i })) : data.points.filter((p) => p.x !== null);
  const unread = data.points.filter((p) => p.base && !points.some((q) => q.base));
  const colour = (p) => (p.base ? c.ink : c.accent);
  const symbols = points.map((p) => (p.base ? "diamond" : "circle") + (p.flagged ? "-open" : ""));
  const bars = {
    type: "data", symmetric: false, thickness: 1.8, width: 3,
    array: points.map((p) => p.high - p.mean), arrayminus: points.map((p) => p.mean - p.low),
  };
  const trace = (more) => ({
    type: "scatter", cliponaxis: false, hoverinfo: "text", text: points.map((p) => p.hover),
    customdata: points.map((p) => p.popover), ...more,
    marker: { size: points.map((p) => (p.base ? 11 : 8)), symbol: symbols, color: points.map(colour), opacity: 1 },
  });
  const rules = [...(data.plain === null ? [] : [["plain", data.plain, c.plain]]), ...unread.map((p) => [data.method, p.mean, c.ink])];
  const ends = [...points.flatMap((p) => [p.low, p.high]), ...rules.map((r) => r[1])];
  const scale = measure([...points.map((p) => p.mean), ...rules.map((r) => r[1])], ends, data.lower, 0.08);
  const range = [scale.low, scale.high];
  const rule = ([, at, line]) => ({
    type: "line", layer: "below", line: { color: line, width: 1.2, dash: "dash" },
    ...(nominal ? { x0: at, x1: at, yref: "paper", y0: 0, y1: 1 } : { y0: at, y1: at, xref: "paper", x0: 0, x1: 1 }),
  });
  const said = ([text, at, colour]) => ({
    text: text.replace(/</g, "&lt;"), showarrow: false, font: { size: 11, color: colour },
    ...(nominal ? { x: scale.at(at), yref: "paper", y: 1, yanchor: "bottom" } : { y: scale.at(at), xref: "paper", x: 1, xanchor: "left", xshift: 3 }),
  });
  const measured = { ...scale.axis, range, title: { text: data.title, font: { size: 12, color: c.soft }, standoff: 6 } };
  const layout = { ...baseLayout(c), shapes: rules.map(rule), annotations: rules.map(said) };
  if (nominal) {
    const longest = Math.max(...points.map((p) => p.label.length));
    return Plotly.react(node, [trace({ mode: "markers", x: points.map((p) => p.mean), y: points.map((p) => p.x), error_x: { ...bars, color: c.accent } })], {
      ...layout, height: 76 + 24 * points.length, margin: { l: Math.min(190, 18 + 7.2 * longest), r: 16, t: 22, b: 42 },
      xaxis: axis(c, measured),
      yaxis: axis(c, { range: [points.length - 0.4, -0.6], showgrid: false, tickvals: points.map((p) => p.x), ticktext: points.map((p) => p.label) }),
    }, { displayModeBar: false, responsive: true });
  }
  const across = (x) => (log ? Math.log10(x) : x);
  const [low, high] = padded(across(points[0].x), across(points.at(-1).x), 0.06);
  const margin = { l: 54, r: 26 + 6.6 * Math.max(0, ...rules.map((r) => r[0].length)), t: 12, b: 46 };
  const pixel = (x) => (node.clientWidth - margin.l - margin.r) * (across(x) - low) / (high - low);
  const marked = ticks(points, pixel, 10 + 7 * Math.max(...points.map((p) => p.label.length)));
  return Plotly.react(node, [trace({ mode: "lines+markers", x: points.map((p) => p.x), y: points.map((p) => p.mean), error_y: { ...bars, color: c.accent }, line: { color: c.accent, width: 1.5 } })], {
    ...layout, height: 260, margin,
    xaxis: axis(c, { type: log ? "log" : "linear", range: [low, high], showgrid: false, tickvals: marked.map((p) => p.x), ticktext: marked.map((p) => p.label), title: { text: data.option.replace(/</g, "&lt;"), font: { size: 12, color: c.soft }, standoff: 8 } }),
    yaxis: axis(c, { ...measured, range: scale.axis.range }),
  }, { displayModeBar: false, responsive: true });
}

// A line a method by number of labels; colours tell strategies or methods apart, dashes the training, symbols both.
function curves(node, data) {
  const c = colours();
  const style = getComputedStyle(document.documentElement);
  const hue = (i) => style.getPropertyValue(`--hue${i % 8}`).trim();
  const symbols = ["circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down"];
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const scale = (x) => (data.log ? Math.log10(x) : x), back = (x) => (data.log ? 10 ** x : x);
  const first = scale(data.xs[0]), last = scale(data.xs.at(-1)), count = data.series.length;
  const gaps = data.xs.slice(1).map((x, i) => scale(x) - scale(data.xs[i]));
  const step = Math.min(0.3 * Math.min(...gaps), 0.03 * (last - first)) / Math.max(1, count - 1); // side by side
  const beside = (x, i) => back(scale(x) + step * (i - (count - 1) / 2));
  const traces = data.series.map((s, i) => {
    const colour = s.plain ? c.plain : hue(s.hue);
    return {
      type: "scatter", mode: "lines+markers", name: s.method, cliponaxis: false, hoverinfo: "text",
      x: s.points.map((p) => beside(p.x, i)), y: s.points.map((p) => p.mean),
      text: s.points.map((p) => p.hover), customdata: s.points.map((p) => p.popover),
      line: { color: colour, width: 1.8, dash: dashes[s.dash % dashes.length] },
      marker: { color: colour, size: 8, symbol: symbols[s.hue % symbols.length] + (s.flagged ? "-open" : "") },
      error_y: {
        type: "data", symmetric: false, thickness: 1.4, width: 2, color: colour,
        array: s.points.map((p) => p.high - p.mean), arrayminus: s.points.map((p) => p.mean - p.low),
      },
    };
  });
  const ends = [...data.series.flatMap((s) => s.points.flatMap((p) => [p.low, p.high])), ...(data.teacher === null ? [] : [data.teacher])];
  const y = measure(data.series.flatMap((s) => s.points.map((p) => p.mean)).concat(data.teacher ?? []), ends, data.lower, 0.05);
  const room = 0.04 * (last - first), range = [first - room, last + room];
  const margin = { l: 54, r: data.teacher === null ? 16 : 20 + 6.6 * data.teacher_title.length, t: 12 };
  const width = node.clientWidth - margin.l - margin.r;
  const points = data.xs.map((x) => ({ x, label: String(x), base: 0 }));
  const marked = ticks(points, (x) => width * (scale(x) - range[0]) / (range[1] - range[0]), 12 + 7 * Math.max(...points.map((p) => p.label.length)));
  const entry = 44 + 7 * Math.max(...data.series.map((s) => s.method.length)); // pixels of a name in the key
  const key = 21 * Math.ceil(count / Math.max(1, Math.floor(width / entry)));
  const teacher = data.teacher === null ? {} : {
    shapes: [{ type: "line", layer: "below", xref: "paper", x0: 0, x1: 1, y0: data.teacher, y1: data.teacher, line: { color: c.teacher, width: 1.2, dash: "dash" } }],
    annotations: [{ text: data.teacher_title, showarrow: false, xref: "paper", x: 1, xanchor: "left", xshift: 3, y: y.at(data.teacher), font: { size: 11, color: c.teacher } }],
  };
  return Plotly.react(node, traces, {
    ...baseLayout(c), ...teacher, uirevision: data.axis, height: (count > 8 ? 500 : 380) + key, margin: { ...margin, b: 56 + key }, showlegend: true,
    legend: { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom", font: { color: c.ink }, entrywidth: entry - 34, entrywidthmode: "pixels" },
    xaxis: axis(c, { type: data.log ? "log" : "linear", range, showgrid: false, tickvals: marked.map((p) => p.x), ticktext: marked.map((p) => p.label), title: { text: data.axis, font: { size: 12, color: c.soft }, standoff: 8 } }),
    yaxis: axis(c, { ...y.axis, title: { text: data.title, font: { size: 12, color: c.soft }, standoff: 6 } }),
  }, { displayModeBar: false, responsive: true });
}

const PLOTS = {
  dots, ablation, curves,
  latency: (node, data) => against("latency", "latency, ms", node, data),
  calls: (node, data) => against("calls", "network calls of one image", node, data),
};

function draw() {
  if (typeof Plotly === "undefined") return;
  for (const node of document.querySelectorAll(".canvas")) {
    const data = JSON.parse(document.getElementById(`data-${node.dataset.group}`).textContent);
    PLOTS[node.dataset.plot](node, data);
    if (!node.dataset.wired) {
      node.dataset.wired = "1";
      node.on("plotly_click", (event) => {
        const id = event.points.map((p) => p.customdata).find(Boolean);
        if (id) document.getElementById(id).showPopover();
      });
    }
  }
}

function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = `theme: ${name}`;
}

document.addEventListener("DOMContentLoaded", () => {
  for (const th of document.querySelectorAll(".results thead th")) {
    th.querySelector("button").addEventListener("click", () => sortBy(th));
  }
  const button = document.getElementById("theme"), names = ["auto", "light", "dark"];
  let theme = "auto";
  try { theme = localStorage.getItem("theme") || theme; } catch { /* storage is off for local files in some browsers */ }
  setTheme(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = names[(names.indexOf(theme) + 1) % names.length];
    try { localStorage.setItem("theme", theme); } catch { /* as above */ }
    setTheme(theme);
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = innerWidth, waiting;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(draw, 150); // label places depend on the width
  });
  draw();
});
