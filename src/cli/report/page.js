"use strict";
// Draws the report from the data that stands beside it. Names from the model only ever become text nodes.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

// Elements.
function add(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== ""));
  return node;
}
const el = (tag, attributes, ...children) => add(document.createElement(tag), attributes, children);
const sv = (tag, attributes, ...children) => add(document.createElementNS("http:/" + "/www.w3.org/2000/svg", tag), attributes, children);

// Numbers for people.
function scaled(value, units, base) {
  let n = 0;
  while (Math.abs(value) >= base && n + 1 < units.length) { value /= base; n += 1; }
  const digits = value === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return [value.toFixed(digits), units[n]];
}
const joined = (pair) => pair.join(" ");
const bytes = (b) => joined(scaled(b, ["B", "kB", "MB", "GB", "TB"], 1000));
const count = (n) => joined(scaled(n, ["", "thousand", "million", "billion", "trillion"], 1000)).trim();
const micros = (us) => scaled(us * 1000, ["ns", "µs", "ms", "s"], 1000);
const time = (us) => joined(micros(us));
const percent = (x) => (100 * x).toFixed(x < 0.0995 ? 1 : 0) + " %";
const plural = (n, one, many) => `${n} ${n === 1 ? one : many || one + "s"}`;

// Kinds of work and their colours.
const KINDS = [
  ["product", "products, convolutions"], ["fold", "normalisation, softmax, sums"], ["map", "element by element"],
  ["move", "moving data"], ["host", "host steps"],
];
function kindOf(step) {
  if (step.kind === "host") return "host";
  if (step.kind === "copy" || !step.operations) return "move";
  if (/contract|conv|dot/.test(step.what)) return "product";
  return /^(map|cast|gather|embed)(\+(map|cast|gather))*$/.test(step.what) ? "map" : "fold";
}
const colour = (kind) => `var(--${kind})`;
const steps = data.steps;
steps.forEach((step, n) => { step.n = n; step.family = kindOf(step); });
const total = data.total.median_us;
const sum = (items, f) => items.reduce((all, item) => all + (f(item) || 0), 0);
function title(step) {
  const of = step.operators && step.operators.length ? step.operators.join(" + ") : "";
  return !of ? step.what : step.family === "move" ? `${step.what}, for ${of}` : of;
}
// A type without the order of its axes in memory, which the details say.
const short = (type) => type.replace(/ order \[[^\]]*\]\S*/g, "");
const origin = (step) => (step.origin.length ? step.origin.join(", ") : "made by Kiln");

// A word beside the pointer.
const tip = $("tip");
function hint(node, text) {
  const show = (event) => {
    tip.textContent = typeof text === "function" ? text() : text;
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(event.clientX + 14, innerWidth - width - 6)) + "px";
    tip.style.top = (event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18) + "px";
  };
  node.addEventListener("pointermove", show);
  node.addEventListener("pointerleave", () => { tip.hidden = true; });
  return node;
}

// Head.
const parts = [];
function section(id, name, text, ...children) {
  parts.push([id, name]);
  const node = el("section", { id }, el("div", { class: "head" }, el("h2", {}, name), text && el("p", {}, text)), children);
  $("main").append(node);
  return node;
}
function theme(name) { document.documentElement.dataset.theme = name; }
const asked = /theme=(dark|light)/.exec(location.search + location.hash);
theme(asked ? asked[1] : matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

// Drawings follow the width of the page.
const drawings = [];
function drawing(node, draw) {
  const run = () => { const width = node.clientWidth; if (width > 0) node.replaceChildren(draw(width)); };
  drawings.push(run);
  return node;
}

function overview() {
  const operations = sum(steps, (s) => s.operations), moved = sum(steps, (s) => s.bytes);
  const hosts = steps.filter((s) => s.kind === "host").length;
  const rate = operations / total / 1e3, [value, unit] = micros(total);
  $("main").append(el("div", { class: "hero" }, el("h1", {}, data.name || "model"),
    el("p", {}, `${data.level} on ${plural(data.threads, "thread")} of ${data.processor}`)));
  const card = (big, small, text) => el("div", { class: "card" }, el("b", {}, big, small && el("small", {}, small)), el("span", {}, text));
  const about = data.nominal ? ", for dims of 32" : "";
  $("main").append(el("div", { class: "cards" },
    card(value, unit, `a run, median of ${data.total.runs}; 90 % below ${time(data.total.p90_us)}`),
    card(rate.toFixed(rate < 10 ? 1 : 0), "GFLOP/s", `${percent(rate / data.machine.gflops)} of ${data.machine.gflops.toFixed(0)} between registers${about}`),
    card(...scaled(operations, ["", "k", "M", "G", "T"], 1000), `operations, ${bytes(moved)} moved${about}`),
    card(...scaled(data.weight_bytes, ["B", "kB", "MB", "GB"], 1000), "weights, mapped and shared between processes"),
    card(...scaled(peak(), ["B", "kB", "MB", "GB"], 1000), `arena; ${bytes(most())} live at once`),
    card(String(data.kernels), "kernels", `${plural(hosts, "host step")}, ${bytes(data.code_bytes)} of machine code`)));
  const families = KINDS.map(([kind, name]) => {
    const of = steps.filter((s) => s.family === kind);
    return { kind, name, of, share: sum(of, (s) => s.share) };
  }).filter((f) => f.of.length);
  const say = (f) => `${f.name}: ${percent(f.share)}, ${plural(f.of.length, "step")}`;
  section("time", "Where the time goes", null,
    el("div", { class: "stack" }, families.map((f) => hint(el("i", { style: `flex:${Math.max(f.share, 0.002)};background:${colour(f.kind)}` }), say(f)))),
    el("div", { class: "legend" }, families.map((f) => el("span", {}, el("i", { style: `background:${colour(f.kind)}` }), say(f)))),
    ends());
}

function ends() {
  const list = (ends) => ends.map((e) => `${e.name}: ${e.type}`).join("\n");
  const pairs = [];
  const pair = (name, text) => text && pairs.push(el("dt", {}, name), el("dd", { class: "mono", style: "white-space:pre-line" }, text));
  pair(data.inputs.length === 1 ? "input" : "inputs", list(data.inputs));
  pair(data.outputs.length === 1 ? "output" : "outputs", list(data.outputs));
  pair("free dims", data.symbols.map((s) => `${s.name}: ${s.least} to ${s.greatest}, here ${s.value}`).join("\n"));
  return el("dl", { class: "pairs", style: "margin:16px 0 0" }, pairs);
}

// The graph: a line for each step, beside it what flows past it.
const ROW = 44;
function lanes(limit) {
  const last = new Map();
  for (const step of steps) for (const read of step.reads) if (typeof read.from === "number") {
    if (!last.has(read.from)) last.set(read.from, new Set());
    last.get(read.from).add(step.n);
  }
  const ends = [], flows = [];
  for (const [from, readers] of [...last].sort((a, b) => a[0] - b[0])) {
    const far = [...readers].filter((n) => n > from + 1).sort((a, b) => a - b);
    const near = readers.has(from + 1);
    if (!far.length) { flows.push({ from, near, far, lane: -1 }); continue; }
    let lane = ends.findIndex((end) => end <= from);
    if (lane < 0) lane = ends.length;
    ends[lane] = far[far.length - 1];
    flows.push({ from, near, far, lane: Math.min(lane, limit - 1) });
  }
  return { flows, count: Math.min(ends.length, limit) };
}

function graph() {
  const narrow = innerWidth < 760, gap = narrow ? 9 : 13;
  const { flows, count } = lanes(narrow ? 4 : 9);
  const home = 12 + count * gap, gutter = home + 12;
  const longest = Math.max(...steps.map((s) => s.share), 1e-9);
  const svg = sv("svg", { width: gutter, height: steps.length * ROW, "aria-hidden": "true" });
  const y = (n) => n * ROW + ROW / 2, x = (lane) => home - (lane + 1) * gap;
  const line = (d) => sv("path", { d, fill: "none", stroke: "var(--soft)", "stroke-width": 1.4, opacity: 0.55 });
  for (const flow of flows) {
    if (flow.near) svg.append(line(`M${home} ${y(flow.from)}V${y(flow.from + 1)}`));
    if (flow.lane < 0) continue;
    const at = x(flow.lane), bend = ROW / 2;
    let path = `M${home} ${y(flow.from)}C${home} ${y(flow.from) + bend} ${at} ${y(flow.from)} ${at} ${y(flow.from) + bend}V${y(flow.far[flow.far.length - 1]) - bend}`;
    for (const to of flow.far) path += `M${at} ${y(to) - bend}C${at} ${y(to)} ${home} ${y(to) - bend} ${home} ${y(to)}`;
    svg.append(line(path));
  }
  for (const step of steps) svg.append(sv("circle", { cx: home, cy: y(step.n), r: 4.5, fill: colour(step.family), stroke: "var(--card)", "stroke-width": 1.5 }));
  const rows = steps.map((step) => {
    const width = Math.max(1, 100 * step.share / longest);
    const row = el("button", { class: "row", style: `padding-left:${gutter}px`, "data-step": step.n, onclick: () => open(step.n) },
      el("span", { class: "name" }, step.name),
      el("span", { class: "ops" }, el("b", {}, title(step)), el("span", {}, origin(step))),
      el("span", { class: "type" }, short(step.result)),
      el("span", { class: "bar" }, el("i", { style: `width:${width}%;background:${colour(step.family)}` }), el("span", {}, time(step.time.median_us))));
    step.text = [step.name, step.what, title(step), origin(step), step.result, step.gives.join(" ")].join(" ").toLowerCase();
    return row;
  });
  const few = rows.length > 24 ? 16 : rows.length;
  let whole = few === rows.length;
  const list = el("div", { class: "graph" }, svg, rows);
  const more = el("button", { class: "more", onclick: () => { whole = true; filter(); } }, `All ${rows.length} steps`);
  const none = el("div", { class: "none", hidden: "" }, "No step is like that.");
  const found = el("span", { class: "soft" });
  const wanted = new Set();
  const search = el("input", { type: "search", placeholder: "Search kernels, ops, nodes, shapes", "aria-label": "Search the graph", oninput: filter });
  const chips = KINDS.filter(([kind]) => steps.some((s) => s.family === kind)).map(([kind, name]) => el("button", {
    class: "chip", "aria-pressed": "false", onclick: (event) => {
      const pressed = wanted.has(kind);
      if (pressed) wanted.delete(kind); else wanted.add(kind);
      event.currentTarget.setAttribute("aria-pressed", String(!pressed));
      filter();
    } }, el("i", { style: `background:${colour(kind)}` }), name));
  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const asks = words.length > 0 || wanted.size > 0;
    let shown = 0;
    rows.forEach((row, n) => {
      const fits = (whole || asks || n < few) && words.every((w) => steps[n].text.includes(w)) && (!wanted.size || wanted.has(steps[n].family));
      row.hidden = !fits;
      shown += fits;
    });
    // Lines between steps mean something where no step between them is left out.
    svg.style.display = asks ? "none" : "";
    svg.setAttribute("height", (whole ? rows.length : few) * ROW);
    none.hidden = shown > 0;
    more.hidden = whole || asks;
    found.textContent = asks ? `${shown} of ${rows.length}` : "";
  }
  filter();
  section("graph", "Graph", "Each line is a step of the plan: a kernel with the ops that were fused into it. Lines on the left are values that later steps read.",
    el("div", { class: "tools" }, search, chips, found), list, none, more);
}

// Memory.
const END = () => Math.max(data.arena_bytes, ...data.slots.map((s) => s.at + s.bytes), 1);
const peak = () => (data.slots.length ? END() : data.arena_bytes);
function live() {
  const change = new Array(steps.length + 1).fill(0);
  for (const s of data.slots) { change[s.first] += s.bytes; change[s.last + 1] -= s.bytes; }
  let now = 0;
  return change.slice(0, steps.length).map((c) => (now += c));
}
const most = () => Math.max(0, ...live());

// Round numbers for an axis.
function ticks(most, many) {
  const raw = most / many, power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw) || power;
  const all = [];
  for (let v = 0; v <= most * 1.0001; v += step) all.push(v);
  return all;
}

function memory() {
  const text = `Steps from left to right, addresses from bottom to top; a box is a tensor from the first to the last step that touches it. The line is what is live: ${bytes(most())} of ${bytes(peak())} at most.`;
  if (!data.slots.length) { section("memory", "Memory", "No step keeps anything between kernels: there is no arena."); return; }
  const node = el("div", { class: "chart" });
  section("memory", "Memory", text, node);
  const alive = live();
  drawing(node, (width) => {
    const [left, right, top, height] = [58, 6, 8, 330], bottom = height - 22, end = END();
    const x = (n) => left + (width - left - right) * n / steps.length, y = (b) => bottom - (bottom - top) * b / end;
    const svg = sv("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "the arena over time" });
    for (const t of ticks(end, 6)) svg.append(sv("path", { class: "grid", d: `M${left} ${y(t)}H${width - right}` }), sv("text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, bytes(t)));
    const every = Math.max(1, Math.ceil(steps.length / (width / 60)));
    for (let n = 0; n < steps.length; n += every) svg.append(sv("text", { x: x(n + 0.5), y: height - 6, "text-anchor": "middle" }, String(n)));
    data.slots.forEach((slot) => {
      const maker = steps[slot.first], box = sv("rect", {
        class: "hot", x: x(slot.first), y: y(slot.at + slot.bytes), width: Math.max(1, x(slot.last + 1) - x(slot.first)), height: Math.max(0.6, y(slot.at) - y(slot.at + slot.bytes)),
        fill: colour(maker.family), "fill-opacity": 0.5, stroke: "var(--card)", "stroke-width": 0.7, onclick: () => open(slot.first) });
      hint(box, `${slot.name || slot.type}\n${slot.name ? slot.type + "\n" : ""}${bytes(slot.bytes)}, steps ${slot.first} to ${slot.last}, made by ${maker.name} ${maker.what}`);
      svg.append(box);
    });
    const points = alive.map((b, n) => `${x(n)} ${y(b)}H${x(n + 1)}`).join("L");
    svg.append(sv("path", { d: "M" + points, fill: "none", stroke: "var(--ember)", "stroke-width": 1.8, "pointer-events": "none" }));
    return svg;
  });
}

// The roofline: Williams, Waterman and Patterson (2009).
function roofline() {
  const of = steps.filter((s) => s.kind === "kernel" && s.operations > 0 && s.bytes > 0);
  const reads = data.machine.reads.map((r) => `${r.gb_per_second.toFixed(0)} GB/s from ${bytes(r.bytes)}`).join(", ");
  const text = `Each circle is a kernel, its area the time it takes. Measured on this machine in the same run: ${data.machine.gflops.toFixed(0)} GFLOP/s between registers, ${reads}.${data.nominal ? " Work is estimated for dims of 32, as the artifact's are free." : ""}`;
  if (!of.length) { section("roofline", "Roofline", "No kernel computes anything."); return; }
  const node = el("div", { class: "chart" });
  section("roofline", "Roofline", text, node);
  const log = Math.log10;
  drawing(node, (width) => {
    const [left, right, top, height] = [52, 12, 12, 380], bottom = height - 34;
    const intensity = of.map((s) => s.operations / s.bytes), speed = of.map((s) => Math.max(s.gflops, 1e-3));
    const x0 = Math.floor(log(Math.min(...intensity, 0.5))), x1 = Math.ceil(log(Math.max(...intensity, 50)));
    const y1 = Math.ceil(log(Math.max(data.machine.gflops, ...speed)) + 0.05), y0 = Math.min(y1 - 2, Math.floor(log(Math.min(...speed))));
    const x = (v) => left + (width - left - right) * (log(v) - x0) / (x1 - x0), y = (v) => bottom - (bottom - top) * (log(v) - y0) / (y1 - y0);
    const svg = sv("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "roofline" });
    const name = (e) => (e >= 0 ? String(10 ** e) : (10 ** e).toFixed(-e));
    for (let e = x0; e <= x1; e += 1) svg.append(sv("path", { class: "grid", d: `M${x(10 ** e)} ${top}V${bottom}` }), sv("text", { x: Math.min(x(10 ** e), width - 14), y: bottom + 15, "text-anchor": "middle" }, name(e)));
    for (let e = y0; e <= y1; e += 1) svg.append(sv("path", { class: "grid", d: `M${left} ${y(10 ** e)}H${width - right}` }), sv("text", { x: left - 7, y: y(10 ** e) + 4, "text-anchor": "end" }, name(e)));
    svg.append(sv("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "operations per byte"), sv("text", { x: 0, y: 0, transform: `translate(11 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "GFLOP/s"));
    const roof = data.machine.gflops;
    data.machine.reads.forEach((read, n) => {
      const rate = read.gb_per_second, from = Math.max(10 ** x0, 10 ** y0 / rate), knee = Math.min(roof / rate, 10 ** x1);
      svg.append(sv("path", { d: `M${x(from)} ${y(from * rate)}L${x(knee)} ${y(knee * rate)}H${width - right}`, fill: "none", stroke: "var(--ember)", "stroke-width": 1.6, opacity: 1 - 0.25 * n }));
    });
    svg.append(sv("text", { x: width - right, y: y(roof) - 6, "text-anchor": "end" }, `${roof.toFixed(0)} GFLOP/s`));
    const largest = Math.max(...of.map((s) => s.share), 1e-9);
    [...of].sort((a, b) => b.share - a.share).forEach((s) => {
      const dot = sv("circle", { class: "hot", cx: x(s.operations / s.bytes), cy: y(Math.max(s.gflops, 1e-3)), r: 3 + 15 * Math.sqrt(s.share / largest), fill: colour(s.family), "fill-opacity": 0.55, stroke: "var(--card)", onclick: () => open(s.n) });
      svg.append(hint(dot, `${s.name} ${s.what}\n${time(s.time.median_us)}, ${percent(s.share)} of the time\n${s.gflops.toFixed(1)} GFLOP/s, ${s.gb_per_second.toFixed(1)} GB/s${s.roofline ? `, ${percent(s.roofline)} of the roof (${s.limit})` : ""}`));
    });
    return svg;
  });
}

// A table whose columns sort.
function sortable(columns, rows, onclick, first) {
  let [by, down] = [0, false], shown = first;
  const body = el("tbody"), head = el("tr"), more = el("button", { class: "more", onclick: () => { shown = Infinity; fill(); } });
  function fill() {
    const sorted = [...rows];
    if (by !== null) sorted.sort((a, b) => { const [u, v] = [columns[by].key(a), columns[by].key(b)]; const c = typeof u === "string" ? u.localeCompare(v, undefined, { numeric: true }) : u - v; return down ? -c : c; });
    body.replaceChildren(...sorted.slice(0, shown).map((row) => {
      const tr = el("tr", onclick ? { tabindex: 0, onclick: () => onclick(row), onkeydown: (e) => { if (e.key === "Enter") onclick(row); } } : {});
      tr.append(...columns.map((c) => el("td", { class: c.class }, c.cell(row))));
      return tr;
    }));
    more.hidden = shown >= rows.length;
    more.textContent = `All ${rows.length}`;
  }
  columns.forEach((c, n) => head.append(el("th", { class: c.class }, el("button", { onclick: () => { down = by === n ? !down : !c.up; by = n; fill(); } }, c.name))));
  return { node: [el("table", {}, el("thead", {}, head), body), more], sort: (n, d) => { by = n; down = d; fill(); } };
}

function kernels() {
  const columns = [
    { name: "step", class: "left", up: true, key: (s) => s.n, cell: (s) => [el("i", { class: "dot", style: `background:${colour(s.family)}` }), el("span", { class: "mono" }, s.name)] },
    { name: "what", class: "left wrap", up: true, key: (s) => s.what, cell: (s) => s.what },
    { name: "time", key: (s) => s.time.median_us, cell: (s) => time(s.time.median_us) },
    { name: "share", key: (s) => s.share, cell: (s) => percent(s.share) },
    { name: "GFLOP/s", class: "wide", key: (s) => s.gflops, cell: (s) => (s.operations ? s.gflops.toFixed(1) : "") },
    { name: "GB/s", class: "wide", key: (s) => s.gb_per_second, cell: (s) => s.gb_per_second.toFixed(1) },
    { name: "of the roof", key: (s) => s.roofline || 0, cell: (s) => (s.roofline ? percent(s.roofline) : "") },
    { name: "limit", class: "wide left", up: true, key: (s) => s.limit, cell: (s) => (s.roofline ? s.limit : "") },
    { name: "programs", class: "wide", key: (s) => Number(s.programs) || 0, cell: (s) => (Number(s.programs) ? s.programs : s.programs ? "free" : "") },
    { name: "code", class: "wide", key: (s) => s.code_bytes || 0, cell: (s) => (s.code_bytes ? bytes(s.code_bytes) : "") },
    { name: "emitter", class: "wide left", up: true, key: (s) => s.emitter || "", cell: (s) => s.emitter || "" },
  ];
  const made = sortable(columns, steps, (s) => open(s.n), 25);
  made.sort(2, true);
  section("kernels", "Kernels", "Times are medians. A line opens what was fused, what was refused and why, and the machine code.", made.node);
}

function accuracy() {
  const a = data.accuracy;
  if (a.why) { section("accuracy", "Accuracy", `Nothing was compared: ${a.why}.`); return; }
  const off = a.layers.filter((l) => !l.agrees).length;
  const text = `${plural(a.layers.length, "value")} compared with ${a.with}: ` + (off ? `${plural(off, "value")} differ by more than ${a.tolerance}.` : `all agree within ${a.tolerance} of the largest element.`);
  const node = el("div", { class: "chart" });
  const size = (l) => (l.relative === null ? (l.agrees ? 0 : Infinity) : l.relative);
  const columns = [
    { name: "value", class: "left wrap", up: true, key: (l) => l.value, cell: (l) => l.value },
    { name: "made by", class: "left", up: true, key: (l) => l.step, cell: (l) => el("span", { class: "mono" }, steps[l.step] ? steps[l.step].name : "") },
    { name: "precision", class: "left wide", up: true, key: (l) => l.type, cell: (l) => el("span", { class: "mono" }, l.type) },
    { name: "difference", key: size, cell: (l) => (l.relative === null ? l.difference : l.relative === 0 ? "equal" : l.relative.toExponential(1)) },
  ];
  const made = sortable(columns, a.layers, (l) => open(l.step), 12);
  made.sort(3, true);
  section("accuracy", "Accuracy", text, a.layers.some((l) => l.relative !== null) ? node : null, made.node);
  drawing(node, (width) => {
    const [left, right, top, height] = [52, 8, 10, 210], bottom = height - 24;
    const shown = a.layers.filter((l) => l.relative !== null), least = 1e-8;
    const y1 = Math.max(0, ...shown.map((l) => Math.ceil(Math.log10(Math.max(l.relative, a.tolerance)) + 0.2))), top1 = Math.min(Math.max(y1, -3), 4), y0 = -8;
    const x = (n) => left + (width - left - right) * (n + 0.5) / steps.length, y = (v) => bottom - (bottom - top) * (Math.log10(Math.max(v, least)) - y0) / (top1 - y0);
    const svg = sv("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "differences by step" });
    for (let e = y0; e <= top1; e += 1) svg.append(sv("path", { class: "grid", d: `M${left} ${y(10 ** e)}H${width - right}` }), sv("text", { x: left - 7, y: y(10 ** e) + 4, "text-anchor": "end" }, e === y0 ? "≤1e-8" : `1e${e}`));
    svg.append(sv("path", { d: `M${left} ${y(a.tolerance)}H${width - right}`, stroke: "var(--host)", "stroke-dasharray": "5 4", "stroke-width": 1.2 }));
    svg.append(sv("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "steps"));
    for (const l of shown) svg.append(hint(sv("circle", { class: "hot", cx: x(l.step), cy: y(l.relative), r: 3.6, fill: l.agrees ? "var(--map)" : "var(--host)", "fill-opacity": 0.75, onclick: () => open(l.step) }), `${l.value}\n${l.type}\n${l.difference}`));
    return svg;
  });
}

function tuning() {
  const t = data.tuning;
  if (!t.records) return;
  if (!t.kernels.length && !t.places.length) { section("tuning", "Tuning", `None of the ${t.records} trials is of a kernel of this model on ${data.level}.`); return; }
  const small = el("div", { class: "small" });
  section("tuning", "Tuning", `Trials of ${plural(t.kernels.length, "kernel")} in the order in which they were made, the kernels that gained most first; the line is the best so far, the dashed one the cost model's own schedule.`, small);
  const own_of = (k) => Math.min(...k.trials.filter((r) => r.default).map((r) => r.ns)), best_of = (k) => Math.min(...k.trials.map((r) => r.ns));
  const gain = (k) => (k.chosen ? own_of(k) / best_of(k) : 1);
  for (const k of [...t.kernels].sort((a, b) => gain(b) - gain(a))) {
    const own = own_of(k), best = best_of(k);
    const node = el("div", { class: "chart" });
    small.append(el("div", {}, el("b", {}, `${k.kernels.slice(0, 3).join(", ")}${k.kernels.length > 3 ? " …" : ""} ${k.what}`), el("p", { class: "mono" }, short(k.shapes)), node,
      el("p", {}, k.chosen ? `${(own / best).toFixed(2)} times as fast with ${k.chosen}` : "no gain beyond noise: the cost model's schedule stays")));
    drawing(node, (width) => {
      const height = 120, [left, right, top, bottom] = [4, 4, 6, 102], ceiling = Math.min(Math.max(...k.trials.map((r) => r.ns)), own * 2.5);
      const x = (n) => left + (width - left - right) * (n + 0.5) / k.trials.length, y = (ns) => bottom - (bottom - top) * (Math.min(ns, ceiling) - best * 0.92) / (ceiling - best * 0.92 || 1);
      const svg = sv("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "trials" });
      svg.append(sv("path", { class: "grid", d: `M${left} ${bottom}H${width - right}` }), sv("path", { d: `M${left} ${y(own)}H${width - right}`, stroke: "var(--soft)", "stroke-dasharray": "4 4" }));
      let now = Infinity;
      const path = k.trials.map((r, n) => { now = Math.min(now, r.ns); return `${x(n)} ${y(now)}`; }).join("L");
      svg.append(sv("path", { d: "M" + path, fill: "none", stroke: "var(--ember)", "stroke-width": 1.6 }));
      k.trials.forEach((r, n) => svg.append(hint(sv("circle", { cx: x(n), cy: y(r.ns), r: r.default ? 3.6 : 2.6, fill: r.default ? "var(--ink)" : "var(--product)", "fill-opacity": 0.8 }), `${r.schedule}\n${time(r.ns / 1000)}${r.default ? ", the cost model's own" : ""}`)));
      svg.append(sv("text", { x: left, y: height - 3 }, `best ${time(best / 1000)}`), sv("text", { x: width - right, y: height - 3, "text-anchor": "end" }, `cost model ${time(own / 1000)}`));
      return svg;
    });
  }
  boundaries(t.places);
}

function boundaries(places) {
  if (!places.length) return;
  const own = (p) => p.ways[p.rules], others = (p) => Object.entries(p.ways).filter(([way]) => way !== p.rules).sort((a, b) => a[1] - b[1]);
  const gain = (p) => (others(p).length ? own(p) / others(p)[0][1] : 0);
  const columns = [
    { name: "kernel", class: "left wrap", up: true, key: (p) => p.what, cell: (p) => p.what },
    { name: "result", class: "left wide", up: true, key: (p) => p.value, cell: (p) => el("span", { class: "mono" }, short(p.value)) },
    { name: "by the rules", key: own, cell: (p) => time(own(p) / 1000) },
    { name: "quickest otherwise", key: (p) => (others(p)[0] || [, 0])[1], cell: (p) => others(p).slice(0, 1).map(([way, ns]) => `${time(ns / 1000)} ${way}`).join("") },
    { name: "ratio", key: gain, cell: (p) => gain(p).toFixed(2) },
    { name: "taken", class: "left wide", key: (p) => p.chosen || "", cell: (p) => p.chosen || "the rules" },
  ];
  const show = (p) => panel(p.what, [el("p", { class: "mono" }, p.value), el("pre", {}, [[p.rules, own(p)], ...others(p)].map(([way, ns]) => `${time(ns / 1000).padStart(10)}  ${way}`).join("\n"))]);
  const made = sortable(columns, places, show, 25);
  made.sort(4, false);
  section("boundaries", "Fusion and layout, measured", `${plural(places.length, "kernel")} as the rules of fusion and layout have ${places.length === 1 ? "it" : "them"}, and otherwise: cut in two, joined with a neighbour, or with the result in another order in memory. A time is that of all kernels that differ; a line opens all ways.`, made.node);
}

function gpu() {
  if (!data.gpu) return;
  const columns = [
    { name: "kernel", class: "left", up: true, key: (k) => k.name, cell: (k) => el("span", { class: "mono" }, k.name) },
    { name: "what", class: "left wrap", up: true, key: (k) => k.what, cell: (k) => k.what },
    { name: "blocks", key: (k) => Number(k.blocks), cell: (k) => k.blocks },
    { name: "threads", key: (k) => k.threads, cell: (k) => k.threads },
    { name: "shared", class: "wide", key: (k) => k.shared, cell: (k) => (k.shared ? bytes(k.shared) : "") },
  ];
  const show = (k) => panel(`${k.name} ${k.what}`, [el("p", { class: "soft" }, k.origin), el("h3", {}, `PTX for ${data.gpu.target}`), k.ptx ? el("pre", {}, k.ptx) : el("p", {}, "left out: the page would be too large")]);
  const made = sortable(columns, data.gpu.kernels, show, 25);
  made.sort(0, false);
  section("gpu", `Kernels for ${data.gpu.target}`, "A line opens its PTX.", made.node);
}

// The drawer.
const detail = $("detail");
function panel(name, children) {
  detail.replaceChildren(el("header", {}, el("h2", {}, name), el("button", { class: "close", onclick: close, "aria-label": "Close" }, "close")), ...children.flat().filter(Boolean));
  detail.hidden = false;
  detail.scrollTop = 0;
}
// A page within a page, such as in a notebook, has no address of its own.
function remember(hash) { try { history.replaceState(null, "", hash); } catch { return; } }
function close() {
  detail.hidden = true;
  document.querySelectorAll(".row.on").forEach((row) => row.classList.remove("on"));
  if (location.hash.startsWith("#step-")) remember("#");
}
function code(text) {
  const pre = el("pre", { tabindex: 0 });
  if (text.length > 400000) { pre.textContent = text; return pre; }
  for (const line of text.split("\n")) {
    const mark = !line.startsWith(" ") && line ? "l" : /^ v?(f[n]?m|pd?p|mul|add|sub|max|min|div|sqrt|padd|psub|pmul)/.test(line) ? "f" : /^ j/.test(line) ? "j" : /^ (v?mov|v?broadcast|vpbroadcast|push|pop|lea|prefetch)/.test(line) ? "m" : "";
    if (mark) pre.append(el("span", { class: mark }, line)); else pre.append(line);
    pre.append("\n");
  }
  return pre;
}
function open(n) {
  const s = steps[n];
  if (!s) return;
  const e = s.explained, list = (name, items) => items.length > 0 && [el("h3", {}, name), el("ul", {}, items.map((i) => el("li", {}, i)))];
  const pairs = [];
  const pair = (name, text) => text && pairs.push(el("dt", {}, name), el("dd", {}, text));
  pair("makes", [el("span", { class: "mono" }, s.result), s.gives.length ? `, the output ${s.gives.join(", ")}` : ""]);
  pair("time", `${time(s.time.median_us)} (quickest ${time(s.time.min_us)}, 90 % below ${time(s.time.p90_us)}), ${percent(s.share)} of the run`);
  if (s.operations || s.bytes) pair("work", `${count(s.operations)} operations, ${bytes(s.bytes)}${data.nominal ? ", for dims of 32" : ""}`);
  if (s.operations) pair("rate", `${s.gflops.toFixed(1)} GFLOP/s, ${s.gb_per_second.toFixed(1)} GB/s`);
  if (s.roofline) pair("roof", `${percent(s.roofline)} of what ${s.limit === "memory" ? "memory" : "arithmetic"} allows`);
  if (e && e.schedule) pair("schedule", `${e.schedule.choice}, one of ${e.schedule.choices}; ${e.schedule.rows} rows, ${e.schedule.columns} columns, ${e.schedule.depth} steps${e.schedule.outer === 1 ? "" : `, ${e.schedule.outer} times`}`);
  if (s.code_bytes) pair("code", `${bytes(s.code_bytes)} by ${s.emitter}, ${s.programs} programs`);
  if (s.why) pair("why on the host", s.why);
  const from = s.reads.map((r) => el("li", {}, el("span", { class: "mono" }, r.type), " of ",
    typeof r.from === "number" ? el("button", { class: "mono", style: "color:var(--ember)", onclick: () => open(r.from) }, `${steps[r.from].name} ${steps[r.from].what}`) : r.from === null ? "the weights" : `the input ${r.from}`));
  const listing = s.listing === null || s.listing === undefined ? null : data.listings[s.listing];
  panel(`${s.name} ${s.what}`, [
    el("dl", { class: "pairs", style: "margin:10px 0 0" }, pairs),
    el("h3", {}, "Reads"), el("ul", {}, from),
    s.ops && s.ops.length ? list("Fused", s.ops.map(([op, names]) => `${op}: ${names.join(", ") || "made by Kiln"}`)) : list("From", s.origin),
    e && list("How", e.fused.map((f) => `${f.value} of ${f.op}: ${f.how}`)),
    e && list("Not fused, and why", e.refused.map((r) => `${r.value} of ${r.op}${r.kernel ? ` (${r.kernel})` : ""}: ${r.why}`)),
    e && list("Not taken further", e.not_taken_further.map((r) => `into ${r.reader.join(", ")}: ${r.why}`)),
    s.kind === "kernel" && [el("h3", {}, `Machine code for ${data.level}`), listing ? code(listing) : el("p", { class: "soft" }, "left out: the page would be too large, or this is no x86-64")],
  ].flat());
  document.querySelectorAll(".row.on").forEach((row) => row.classList.remove("on"));
  const row = document.querySelector(`.row[data-step="${n}"]`);
  if (row) row.classList.add("on");
  remember(`#step-${n}`);
}
addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });

overview();
graph();
memory();
roofline();
kernels();
accuracy();
tuning();
gpu();
$("top").replaceWith(el("nav", {}, el("div", {}, el("span", { class: "brand" }, "Kiln"), parts.map(([id, name]) => el("a", { href: "#" + id }, name)),
  el("button", { class: "theme", onclick: () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark") }, "dark / light"))));
const pairs = (of) => Object.entries(of).flatMap(([name, text]) => [el("dt", {}, name), el("dd", { class: "mono" }, text)]);
$("main").append(el("footer", {}, `Made by Kiln ${data.version}.`, el("dl", { class: "pairs" }, pairs(data.options), pairs(Object.fromEntries(Object.entries(data.hashes).map(([k, v]) => ["hash of " + k, v]))))));
drawings.forEach((run) => run());
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawings.forEach((run) => run()); } });
const step = /^#step-(\d+)$/.exec(location.hash);
if (step) open(Number(step[1]));
document.documentElement.dataset.drawn = "yes";
