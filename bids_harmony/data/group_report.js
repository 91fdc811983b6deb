"use strict";
// The dataset's page: a list of scans to rate, and charts. What comes from the dataset is put into the page as text
// (textContent, or escaped for plotly), never as HTML.
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const N = D.scan.length, VERDICTS = ["accept", "reject", "unsure"], PAGE = 50;
const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#B8A900"];
const SYMBOLS = ["circle", "square", "diamond", "cross", "triangle-up", "x", "star", "triangle-down"];
const STATUS = {pass: ["#0072B2", "circle"], warn: ["#E69F00", "diamond"], fail: ["#D55E00", "square"], error: ["#CC79A7", "x"]};
const $ = id => document.getElementById(id);
const el = (tag, text, props = {}) => Object.assign(document.createElement(tag), text == null ? {} : {textContent: text}, props);
const text = (column, i) => D.texts[column].levels[D.texts[column].codes[i]] ?? "";
const number = (column, i) => D.numbers[column]?.[i] ?? null;
const say = v => v == null ? "n/a" : Number.isInteger(v) ? String(v) : Math.abs(v) >= 100 ? v.toFixed(0) : String(+v.toPrecision(3));
const metricOf = Object.fromEntries(D.metrics.map(m => [m.name, m]));
const flagsOf = i => D.flags[i] ?? [];
const placeOf = new Map(D.scan.map((scan, i) => [scan, i]));
const quantile = (sorted, q) => {
  const at = (sorted.length - 1) * q, low = Math.floor(at);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
};

// ---- Ratings: rows of earlier files, then this reader's own. A page opened as a file may be refused its storage.
const store = {
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(key, value); } catch { /* kept in this page only */ } },
};
const DRAFT = "bids_harmony.ratings:" + location.pathname;
const line = value => String(value ?? "").replace(/[\s\x1c-\x1e\x85]+/g, " ").trim();
const held = new Map();                                      // scan -> rater -> newest row
const hold = row => { if (!held.has(row.scan)) held.set(row.scan, new Map()); held.get(row.scan).set(row.rater, row); };
const earlier = D.ratings.map(([scan, rater, time, verdict, comment]) => ({scan, rater, time, verdict, comment}));
earlier.filter(r => !r.verdict || VERDICTS.includes(r.verdict)).forEach(hold);
const fresh = new Map();                                     // scan and rater -> row not in the page's own ratings
let rater = line(store.get("bids_harmony.rater")), saved = true;
(() => {
  const known = new Set(earlier.map(r => [r.scan, r.rater, r.time].join("\t")));
  let draft = {};
  try { draft = JSON.parse(store.get(DRAFT)) ?? {}; } catch { /* not ours */ }
  for (const row of draft.rows ?? []) if (placeOf.has(row.scan) && !known.has([row.scan, row.rater, row.time].join("\t"))) {
    fresh.set(row.scan + "\t" + row.rater, row); hold(row);
  }
  saved = !fresh.size || draft.saved === true;
})();
const verdicts = i => [...(held.get(D.scan[i])?.values() ?? [])].filter(r => VERDICTS.includes(r.verdict));
const mine = i => held.get(D.scan[i])?.get(rater);
const verdict = i => {
  const found = new Set(verdicts(i).map(r => r.verdict));
  return found.size > 1 ? "disputed" : [...found][0] ?? "";
};
function rate(i, change) {
  if (!rater) return askRater(() => rate(i, change));
  const old = mine(i), time = new Date().toISOString().slice(0, 19) + "Z";
  const row = {scan: D.scan[i], rater, time, verdict: old?.verdict ?? "", comment: old?.comment ?? "", ...change};
  if (old && old.verdict === row.verdict && old.comment === row.comment) return;
  fresh.set(row.scan + "\t" + rater, row); hold(row);
  saved = false; keep(); showRow(i);
  if (shown === i) showVerdict(i);
}
function keep() { store.set(DRAFT, JSON.stringify({rows: [...fresh.values()], saved})); showRater(); }
function ratingsFile() {
  const rows = [...earlier, ...fresh.values()].map(r => [r.scan, r.rater, r.time, r.verdict, r.comment].map(v => line(v) || "n/a"));
  return [["scan", "rater", "time", "verdict", "comment"], ...rows].map(r => r.join("\t") + "\n").join("");
}
function save() {
  if (!fresh.size) return;
  const url = URL.createObjectURL(new Blob([ratingsFile()], {type: "text/tab-separated-values"}));
  el("a", null, {href: url, download: "qc_ratings.tsv"}).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  saved = true; keep();
}
function showRater() {
  $("rater").textContent = rater || "not named yet";
  const s = fresh.size === 1 ? "" : "s";
  $("unsaved").textContent = !fresh.size ? "No new ratings" : `${fresh.size} new rating${s}${saved ? ", saved to a file" : ", not saved yet"}`;
  $("save").disabled = !fresh.size;
}
let afterName = null;
function askRater(then) { afterName = then; $("who-name").value = rater; $("who").showModal(); $("who-name").select(); }
$("who").addEventListener("close", () => {
  const name = line($("who-name").value), then = afterName;
  afterName = null;
  if ($("who").returnValue !== "ok" || !name) return;
  $("who").returnValue = "";
  rater = name; store.set("bids_harmony.rater", rater); showRater(); fill();
  if (shown != null) showVerdict(shown);
  then?.();
});
$("who-cancel").onclick = () => $("who").close("");
$("rename").onclick = () => askRater(null);
$("save").onclick = save;
addEventListener("beforeunload", event => { if (!saved) event.preventDefault(); });

// ---- The list: all scans, of which a page of rows is in the document.
const rank = i => number("outlier_rank", i) ?? Infinity;
const natural = new Intl.Collator("en", {numeric: true}).compare;
const byName = [...D.scan.keys()].sort((a, b) => natural(D.scan[a], D.scan[b]));
const nameRank = new Int32Array(N); byName.forEach((i, at) => { nameRank[i] = at; });
const COLUMNS = [
  ["#", i => rank(i)], ["Scan", i => nameRank[i]], ["Site", i => D.texts.site.codes[i]], ["Age", i => number("age", i) ?? Infinity],
  ["Status", i => -["pass", "warn", "fail", "error"].indexOf(text("qc_status", i))], ["Why", i => -flagsOf(i).length],
  ["Rating", i => ["disputed", "reject", "unsure", "accept", ""].indexOf(verdict(i))]];
const sought = D.scan.map((scan, i) => [scan, text("site", i), text("diagnosis", i), text("error", i),
  ...flagsOf(i).map(f => f[1])].join(" ").toLowerCase());
let order = {column: 0, sign: 1}, found = [], page = 0, marked = 0, shown = null;
const head = $("list").tHead.rows[0];
COLUMNS.forEach(([name], column) => {
  const button = el("button", name, {type: "button"}), th = el("th", null, {scope: "col"});
  button.onclick = () => { order = {column, sign: order.column === column ? -order.sign : 1}; filter(); };
  th.append(button); head.append(th);
});
function filter() {
  const words = $("f-text").value.toLowerCase().split(/\s+/).filter(Boolean), site = $("f-site").value;
  const status = $("f-status").value, rating = $("f-rating").value, flagged = $("f-flagged").checked;
  const rated = {"": () => true, none: i => !verdict(i), mine: i => !mine(i)?.verdict}[rating] ?? (i => verdict(i) === rating);
  found = [];
  for (let i = 0; i < N; i++) {
    if (site && text("site", i) !== site || status && text("qc_status", i) !== status) continue;
    if (flagged && !D.flags[i] || !rated(i) || !words.every(word => sought[i].includes(word))) continue;
    found.push(i);
  }
  const key = COLUMNS[order.column][1], keys = new Map(found.map(i => [i, key(i)]));
  found.sort((a, b) => order.sign * (keys.get(a) - keys.get(b) || 0) || rank(a) - rank(b) || nameRank[a] - nameRank[b]);
  [...head.cells].forEach((th, c) => { th.ariaSort = c === order.column ? (order.sign > 0 ? "ascending" : "descending") : "none"; });
  $("count").textContent = `${found.length} of ${N} scans, ${found.filter(i => D.flags[i]).length} of them flagged`;
  marked = 0; fill();
}
function rowOf(i) {
  const row = el("tr"), open = el("a", D.scan[i], {href: "#scan=" + encodeURIComponent(D.scan[i])}), flags = flagsOf(i);
  row.dataset.scan = i;
  const name = el("td"); name.append(open);
  const status = el("td"); status.append(badge(text("qc_status", i)));
  const why = flags.length ? flags[0][1] + (flags.length > 1 ? ` (and ${flags.length - 1} more)` : "") : text("error", i);
  row.append(el("td", flags.length ? say(number("outlier_rank", i)) : ""), name, el("td", text("site", i)),
    el("td", say(number("age", i))), status, el("td", why), el("td", ratingText(i)));
  row.classList.toggle("marked", found[marked] === i);
  return row;
}
const badge = status => el("span", status, {className: "badge " + (status in STATUS ? status : "")});
function ratingText(i) {
  const rows = verdicts(i);
  return verdict(i) === "disputed" ? "disputed: " + rows.map(r => `${r.rater} ${r.verdict}`).join(", ")
    : rows.length > 1 ? `${rows[0].verdict} (${rows.length} raters)` : rows[0] ? `${rows[0].verdict} (${rows[0].rater})` : "";
}
function fill() {
  page = Math.floor(marked / PAGE);
  $("list").tBodies[0].replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(rowOf));
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  $("page").textContent = `Page ${page + 1} of ${pages}`;
  $("page-back").disabled = page === 0; $("page-on").disabled = page >= pages - 1;
}
function showRow(i) { document.querySelector(`#list tr[data-scan="${i}"]`)?.replaceWith(rowOf(i)); }
function mark(at, look = true) {
  if (at < 0 || at >= found.length) return;
  const before = found[marked];
  marked = at;
  if (Math.floor(at / PAGE) !== page) fill(); else { showRow(before); showRow(found[at]); }
  if (look) document.querySelector("#list tr.marked a")?.focus();
}
$("list").tBodies[0].onclick = event => {
  const row = event.target.closest("tr");
  if (row && !event.ctrlKey && !event.metaKey) { event.preventDefault(); open(+row.dataset.scan); }
};
$("page-back").onclick = () => mark((page - 1) * PAGE);
$("page-on").onclick = () => mark((page + 1) * PAGE);
$("filters").oninput = filter;
$("filters").onsubmit = event => event.preventDefault();
for (const [id, column] of [["f-site", "site"], ["f-status", "qc_status"]]) $(id).append(...D.texts[column].levels.map(v => el("option", v, {value: v})));

// ---- One scan: verdict, reasons, pictures, metrics against its site.
function open(i) {
  shown = i;
  const at = found.indexOf(i);
  if (at >= 0) mark(at, false);
  $("p-title").textContent = D.scan[i];
  $("p-place").textContent = at >= 0 ? `${at + 1} of ${found.length} in the list` : "not in the filtered list";
  $("p-report").href = encodeURIComponent(D.scan[i].split("_")[0]) + ".html";
  $("p-back").disabled = at <= 0; $("p-on").disabled = at < 0 || at + 1 >= found.length;
  const body = $("p-body"), flags = flagsOf(i);
  body.replaceChildren(facts(i));
  if (text("error", i)) body.append(el("p", "It could not be finished: " + text("error", i), {className: "note warn"}));
  if (flags.length) {
    const list = el("ul"); list.append(...flags.map(f => el("li", f[1])));
    body.append(el("h3", "Why it is flagged"), list);
  } else body.append(el("p", "It is not flagged.", {className: "small"}));
  body.append(el("h3", "Pictures"), ...pictures(i), el("h3", "Metrics against its site"), ...metricRows(i));
  showVerdict(i);
  history.replaceState(null, "", "#scan=" + encodeURIComponent(D.scan[i]));
  if (!$("panel").open) $("panel").showModal();
  body.scrollTop = 0; body.focus();
}
function facts(i) {
  const known = ["site", "sex", "diagnosis", "manufacturer", "model"].map(c => text(c, i)).filter(Boolean);
  const predicted = D.targets.map(t => `${t.label} ${say(number(t.name + "_raw", i))} raw, ${say(number(t.name + "_harmonized", i))} harmonized`
    + (t.simulated ? " (trained on simulated labels; not a diagnosis)" : ""));
  const p = el("p");
  p.append(badge(text("qc_status", i)), ` ${known.join(", ")}; age ${say(number("age", i))}. `);
  if (text("harmonization_status", i)) p.append(`Anatomy after harmonization: ${text("harmonization_status", i)}. `);
  if (predicted.length && number(D.targets[0].name + "_raw", i) != null) p.append(predicted.join("; ") + ".");
  return p;
}
function pictures(i) {
  const paths = (D.pictures[i] ?? []).map(k => D.patterns[k].replace("{p}", D.scan[i].split("_")[0]).replace("{s}", D.scan[i]));
  if (!paths.length) return [el("p", "There are none.")];
  return paths.map(path => {
    const kind = /_desc-([^_]+)_/.exec(path)?.[1] ?? "", what = D.captions[kind] ?? kind;
    const figure = el("figure"), img = el("img", null, {alt: `${what}: ${D.scan[i]}`, loading: "lazy"});
    img.onerror = () => img.replaceWith(el("p", `The picture ${path} is not beside this page.`, {className: "small"}));
    img.src = path.split("/").map(encodeURIComponent).join("/");
    figure.append(el("figcaption", what, {className: "small"}), img);
    return figure;
  });
}
const siteValues = new Map();
function valuesAt(metric, code) {
  const key = metric + "\t" + code;
  if (!siteValues.has(key)) {
    const codes = D.texts.site.codes, values = [];
    (D.numbers[metric] ?? []).forEach((v, i) => { if (v != null && codes[i] === code) values.push(v); });
    siteValues.set(key, Float64Array.from(values).sort());
  }
  return siteValues.get(key);
}
function metricRows(i) {
  const table = el("table"), flagged = new Set(flagsOf(i).map(f => f[0])), code = D.texts.site.codes[i];
  const headRow = table.createTHead().insertRow(), body = table.createTBody();
  headRow.append(...["Metric", "Value", "", "Site's 5 %", "Median", "95 %", "n"].map((t, c) => el("th", t, {scope: "col", className: c && c !== 2 ? "n" : ""})));
  for (const metric of D.metrics) {
    const value = number(metric.name, i), all = valuesAt(metric.name, code);
    if (value == null) continue;
    const [low, middle, high] = [0.05, 0.5, 0.95].map(q => quantile(all, q)), row = body.insertRow();
    row.className = flagged.has(metric.name) ? "flagged" : "";
    const bar = el("td"), range = el("span", null, {className: "range"}), dot = el("i");
    const place = high > low ? 25 + 50 * (value - low) / (high - low) : 50;
    dot.style.left = Math.min(99, Math.max(1, place)) + "%";
    range.setAttribute("aria-hidden", "true"); range.append(dot); bar.append(range);
    row.append(el("th", metric.label + (row.className ? " (flagged)" : ""), {scope: "row", title: metric.text}), el("td", say(value), {className: "n"}), bar,
      ...[say(low), say(middle), say(high), all.length].map(t => el("td", t, {className: "n"})));
  }
  if (!body.rows.length) return [el("p", "It has none.")];
  const scroll = el("div", null, {className: "scroll"}); scroll.append(table);
  return [scroll, el("p", "The bar's darker part is the site's 5 % to 95 %, this scan among them.", {className: "small"})];
}
function showVerdict(i) {
  const own = mine(i);
  document.querySelectorAll("#panel [data-verdict]").forEach(b => b.setAttribute("aria-pressed", String(b.dataset.verdict === own?.verdict)));
  $("p-undo").disabled = !own?.verdict;
  if (document.activeElement !== $("p-comment")) $("p-comment").value = own?.comment ?? "";
  const rows = [...(held.get(D.scan[i])?.values() ?? [])].filter(r => r.verdict || r.comment);
  $("p-said").textContent = (verdict(i) === "disputed" ? "Raters disagree. " : "")
    + rows.map(r => `${r.rater || "somebody"}: ${r.verdict || "no verdict"}${r.comment ? `, “${r.comment}”` : ""}${r.time ? ` (${r.time.slice(0, 10)})` : ""}`).join(" · ");
}
function keepComment() { if (shown != null) { const comment = line($("p-comment").value); if (comment !== (mine(shown)?.comment ?? "")) rate(shown, {comment}); } }
function step(by) { const at = found.indexOf(shown); if (at >= 0 && found[at + by] != null) { keepComment(); open(found[at + by]); } }
document.querySelectorAll("#panel [data-verdict]").forEach(b => { b.onclick = () => rate(shown, {verdict: b.dataset.verdict, comment: line($("p-comment").value)}); });
$("p-undo").onclick = () => rate(shown, {verdict: ""});
$("p-comment").onchange = keepComment;
$("p-back").onclick = () => step(-1);
$("p-on").onclick = () => step(1);
$("p-close").onclick = () => $("panel").close();
$("panel").addEventListener("close", () => {                 // comes a moment later, when other keys may have been struck
  if ($("panel").open) return;
  keepComment(); shown = null;
  history.replaceState(null, "", "#scans");
  if (document.activeElement === document.body || $("list").contains(document.activeElement)) document.querySelector("#list tr.marked a")?.focus();
});
$("show-help").onclick = () => $("help").showModal();
function fromAddress() {
  const wanted = /^#scan=(.*)$/.exec(location.hash);
  let scan = "";
  try { scan = wanted ? decodeURIComponent(wanted[1]) : ""; } catch { /* not an address of ours */ }
  if (placeOf.has(scan)) open(placeOf.get(scan));
}
addEventListener("hashchange", fromAddress);

// ---- Keys.
const VERDICT_KEYS = {a: "accept", r: "reject", u: "unsure"};
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("who").open) return;
  const target = event.target;
  if (target === $("p-comment")) {                           // keys are letters here
    if (event.key === "Enter" || event.key === "Escape") { event.preventDefault(); $("p-body").focus(); }
    return;
  }
  if (target.matches("input[type=search]") && event.key === "Enter") { event.preventDefault(); target.blur(); return; }
  if (target.matches("input:not([type=checkbox]), select, textarea")) return;
  const inside = $("panel").open, i = inside ? shown : found[marked], key = event.key;
  if (key === "?") { if ($("help").open) $("help").close(); else $("help").showModal(); }
  else if ($("help").open) return;
  else if (key === "j" || key === "k") { const by = key === "j" ? 1 : -1; if (inside) step(by); else mark(marked + by); }
  else if (key in VERDICT_KEYS && i != null) rate(i, {verdict: VERDICT_KEYS[key], ...(inside ? {comment: line($("p-comment").value)} : {})});
  else if (key === "x" && i != null && mine(i)?.verdict) rate(i, {verdict: ""});
  else if (key === "c" && i != null) { if (!inside) open(i); $("p-comment").focus(); }
  else if (key === "Enter" && target === document.body && i != null) open(i);
  else if (key === "s") save();
  else if (key === "/") { if (inside) $("panel").close(); $("f-text").focus(); $("f-text").select(); }
  else return;
  event.preventDefault();
});

// ---- Charts. Plotly reads some HTML in texts, so they are escaped.
const plain = value => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const canGL = (() => { try { return !!document.createElement("canvas").getContext("webgl2"); } catch { return false; } })();
const KIND = N > 3000 && canGL ? "scattergl" : "scatter";
const LAYOUT = {font: {family: "system-ui, sans-serif", size: 13, color: "#1d2733"}, hovermode: "closest", dragmode: "zoom",
  margin: {l: 10, r: 10, t: 40, b: 50}, paper_bgcolor: "#fff", plot_bgcolor: "#fff"};
const CONFIG = {displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};
const AXIS = {gridcolor: "#e6eaee", zeroline: false, automargin: true};
const points = (rows, x, y, look, more = {}) => ({type: KIND, mode: "markers", x, y, customdata: rows, hoverinfo: "text",
  text: rows.map((i, k) => plain(D.scan[i]) + "<br>" + plain(text("site", i)) + "<br>" + say(x[k]) + (more.both ? " → " + say(y[k]) : "")),
  marker: {color: look[0], symbol: look[1], size: N > 3000 ? 5 : 7, opacity: 0.75, line: {width: 0}}, ...more.trace});
// Reading the library takes longer than all else, so it waits for the first chart.
function library() {
  if (!window.Plotly) document.head.append(el("script", $("plotly").textContent));
  return window.Plotly;
}
function draw(div, traces, layout) {
  div.querySelector(".wait")?.remove();
  div.style.minHeight = layout.height + "px";
  library().react(div, traces, {...LAYOUT, ...layout}, CONFIG);
  div.removeAllListeners?.("plotly_click");
  div.on("plotly_click", event => { const i = event.points[0].customdata; if (i != null) open(i); });
}
const usable = [...Array(N).keys()].filter(i => text("rating", i) !== "reject");  // as the tables, when the page was made
const shake = i => ((i * 0.6180339887) % 1 - 0.5) * 0.62;     // the same at every opening
// Strips: one panel for each column, one strip for each level; coloured by status.
function strips(div, columns, levels, codes, rows, ringed) {
  const traces = [], shapes = [], annotations = [], narrow = div.clientWidth < 700, panels = columns.length;
  const height = (narrow ? panels : 1) * (90 + Math.max(3, levels.length) * 42), gap = 75 / height;
  const layout = {height, shapes, annotations, legend: {orientation: "h", y: 1, yanchor: "bottom", x: 0}};
  columns.forEach(([column, title, range], p) => {
    const suffix = p ? String(p + 1) : "", axes = {xaxis: "x" + suffix, yaxis: "y" + suffix};
    const here = rows.filter(i => number(column, i) != null), of = code => here.filter(i => codes[i] === code);
    for (const [status, look] of Object.entries(STATUS)) {
      const some = here.filter(i => text("qc_status", i) === status);
      if (some.length) traces.push(points(some, some.map(i => number(column, i)), some.map(i => codes[i] + shake(i)), look,
        {trace: {name: status, legendgroup: status, showlegend: !traces.some(t => t.name === status), ...axes}}));
    }
    const rings = here.filter(i => ringed?.has(i));
    if (rings.length) traces.push({...points(rings, rings.map(i => number(column, i)), rings.map(i => codes[i] + shake(i)), ["#000", "circle-open"]),
      name: "flagged for this", ...axes});
    traces.at(-1)?.marker && rings.length && Object.assign(traces.at(-1).marker, {size: 13, opacity: 1, line: {width: 1.6}});
    levels.forEach((_, code) => {
      const values = Float64Array.from(of(code).map(i => number(column, i))).sort();
      if (values.length) { const middle = quantile(values, 0.5); shapes.push({type: "line", x0: middle, x1: middle, y0: code - 0.4, y1: code + 0.4, xref: axes.xaxis, yref: axes.yaxis, line: {color: "#1d2733", width: 3}}); }
    });
    const at = p / panels, width = 1 / panels;
    layout["xaxis" + suffix] = {...AXIS, title: {text: plain(title), font: {size: 13}}, anchor: axes.yaxis, domain: narrow ? [0, 1] : [at + (p ? 0.02 : 0), at + width - 0.01], ...(range ? {range} : {})};
    layout["yaxis" + suffix] = {...AXIS, anchor: axes.xaxis, showgrid: false, range: [levels.length - 0.5, -0.5], tickvals: levels.map((_, c) => c), showticklabels: !p || narrow,
      ticktext: levels.map((name, c) => plain(name.length > 24 ? name.slice(0, 23) + "…" : name) + `<br>n = ${of(c).length}`), domain: narrow && panels > 1 ? [1 - at - width + (p + 1 < panels ? gap : 0), 1 - at] : [0, 1]};
  });
  draw(div, traces, layout);
}
function showMetric() {
  const name = $("metric").value, target = D.targets.find(t => name.startsWith(t.name + "_")), metric = metricOf[name] ?? {label: name.replaceAll("_", " "), text: target ? target.label + (target.simulated ? ". Trained on simulated labels; not a diagnosis." : ".") : "", units: "", direction: ""};
  const ringed = new Set(Object.keys(D.flags).filter(i => D.flags[i].some(f => f[0] === name)).map(Number));
  $("metric-text").textContent = [metric.text, metric.direction && metric.direction !== "neither" ? metric.direction[0].toUpperCase() + metric.direction.slice(1) + "." : "",
    (count => count ? `${count} scans have no value.` : "")(D.numbers[name].filter(v => v == null).length)].filter(Boolean).join(" ");
  const units = metric.units && metric.units !== "ratio" ? ` (${metric.units})` : "", levels = D.texts.site.levels;
  strips($("strips"), [[name, metric.label + units]], levels, D.texts.site.codes, [...Array(N).keys()], ringed);
  $("metric-table").tBodies[0].replaceChildren(...levels.map((site, code) => {
    const values = valuesAt(name, code), row = el("tr"), flagged = [...ringed].filter(i => D.texts.site.codes[i] === code).length;
    row.append(el("th", site, {scope: "row"}), ...[values.length, ...[0.05, 0.5, 0.95].map(q => values.length ? say(quantile(values, q)) : "n/a"), flagged].map(t => el("td", t, {className: "n"})));
    return row;
  }));
}
function showAges() {
  const div = $("ages"), sites = D.texts.site, traces = [], narrow = div.clientWidth < 700, kinds = ["raw", "harmonized"];
  const rows = usable.filter(i => number("age", i) != null && kinds.every(k => number("brain_age_" + k, i) != null));
  const all = rows.flatMap(i => [number("age", i), ...kinds.map(k => number("brain_age_" + k, i))]);
  const low = all.reduce((a, b) => Math.min(a, b), Infinity) - 3, high = all.reduce((a, b) => Math.max(a, b), -Infinity) + 3;
  const layout = {height: (narrow ? 880 : 500) + 20 * Math.ceil(sites.levels.length / (narrow ? 2 : 6)), shapes: [], legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0}};
  kinds.forEach((kind, p) => {
    const suffix = p ? "2" : "";
    sites.levels.forEach((site, code) => {
      const here = rows.filter(i => sites.codes[i] === code);
      if (here.length) traces.push(points(here, here.map(i => number("age", i)), here.map(i => number("brain_age_" + kind, i)),
        [COLOURS[code % 8], SYMBOLS[(code + Math.floor(code / 8)) % 8]], {both: true, trace: {name: plain(site) + ` (n = ${here.length})`, legendgroup: String(code), showlegend: !p, xaxis: "x" + suffix, yaxis: "y" + suffix}}));
    });
    layout["xaxis" + suffix] = {...AXIS, title: {text: "age (years)", font: {size: 13}}, range: [low, high], anchor: "y" + suffix, domain: narrow ? [0, 1] : p ? [0.54, 1] : [0, 0.46]};
    layout["yaxis" + suffix] = {...AXIS, title: {text: `brain age, ${kind} (years)`, font: {size: 13}}, range: [low, high], anchor: "x" + suffix, domain: !narrow ? [0, 1] : p ? [0, 0.43] : [0.57, 1]};
    layout.shapes.push({type: "line", x0: low, y0: low, x1: high, y1: high, xref: "x" + suffix, yref: "y" + suffix, line: {color: "#1d2733", dash: "dot", width: 1}});
  });
  draw(div, traces, layout);
}
function showProbability(div) {
  const levels = [...D.texts.diagnosis.levels], codes = D.texts.diagnosis.codes.map(c => c < 0 ? levels.length : c), name = div.dataset.target;
  if (codes.some(c => c === levels.length)) levels.push("unknown");
  const label = D.targets.find(t => t.name === name)?.simulated ? "probability (simulated labels)" : "probability";
  strips(div, ["raw", "harmonized"].map(kind => [`${name}_${kind}`, `${kind}: ${label}`, [-0.02, 1.02]]), levels, codes, usable);
}
const groups = new Map();
D.metrics.forEach(m => { if (!groups.has(m.group)) groups.set(m.group, []); groups.get(m.group).push([m.name, m.label]); });
const predicted = Object.keys(D.numbers).filter(c => D.targets.some(t => c.startsWith(t.name + "_")) && !/_(low|high)$/.test(c));
if (predicted.length) groups.set("Predictions", predicted.map(c => [c, c.replaceAll("_", " ")]));
for (const [label, options] of groups) {
  const group = el("optgroup", null, {label});
  group.append(...options.map(([value, name]) => el("option", name, {value})));
  $("metric").append(group);
}
$("metric").onchange = showMetric;
// A chart is drawn when it comes near the window, so that the page opens at once.
const charts = new Map([...document.querySelectorAll(".chart.probability")].map(div => [div, () => showProbability(div)]));
if ($("ages")) charts.set($("ages"), showAges);
if (groups.size) charts.set($("strips"), showMetric);
const drawChart = div => { const chart = charts.get(div); charts.delete(div); chart?.(); };
const watcher = new IntersectionObserver(entries => entries.forEach(e => { if (e.isIntersecting) { watcher.unobserve(e.target); drawChart(e.target); } }), {rootMargin: "300px"});
charts.forEach((_, div) => { div.append(el("p", "The chart is being drawn …", {className: "small wait"})); watcher.observe(div); });
addEventListener("beforeprint", () => [...charts.keys()].forEach(drawChart));

showRater(); filter(); fromAddress();
})();
