"use strict";
// The page without this file shows every table; with it tables sort and page, verdicts filter and open.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 60, DASH = "–", UNIT = 10000, MOST_PRINTED = 2000;
  const text = (i) => data.texts[i] ?? "";

  function make(tag, attributes = {}, ...children) {
    const node = tag.startsWith("svg:")
      ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
      : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== "") node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  // Numbers

  const PREFIX = { P: 1e15, T: 1e12, G: 1e9, M: 1e6, k: 1e3, m: 1e-3, "µ": 1e-6, n: 1e-9, Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40 };

  function magnitude(shown) {
    const found = /^[<>≥≤]?\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*((?:[KMGT]i|[PTGMkmµn])(?=[A-Za-z]|\s*$))?/.exec(shown);
    return found ? Number(found[1]) * (PREFIX[found[2]] ?? 1) : NaN;
  }

  function significant(value, digits = 3) {
    if (value === 0) return "0";
    const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
    return value.toFixed(Math.min(decimals, 12));
  }

  function seconds(value) {
    for (const [factor, unit] of [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]]) if (value >= factor) return `${significant(value / factor)} ${unit}`;
    return `${significant(value / 1e-9)} ns`;
  }

  // Cells and tables

  function dash(reason) {
    const why = reason || "no value for this row";
    return make("span", { class: "dash", tabindex: "0", role: "img", "aria-label": `no value: ${why}`, title: why }, DASH);
  }

  function parts(cell) {
    return typeof cell === "number" ? [text(cell), "", ""] : cell.map(text);
  }

  function cellNode(cell, column, tag = "td") {
    const [shown, mark, hint] = parts(cell);
    const names = [column.number ? "n" : "", mark.replaceAll(" ", "-")].filter(Boolean).join(" ");
    const node = make(tag, { class: names, role: "cell", "data-label": column.title }, shown === DASH ? dash(hint) : shown);
    if (hint && shown !== DASH) node.title = hint;
    return node;
  }

  function columnsOf(table) {
    return [...table.tHead.rows[0].cells].map((head) => ({ title: head.textContent, number: head.classList.contains("n") }));
  }

  class Grid {
    constructor(table, rows, build) {
      this.table = table;
      this.body = table.tBodies[0];
      this.columns = columnsOf(table);
      this.all = this.kept = rows;
      this.build = build;
      this.most = PAGE;
      this.sorted = null;
      this.more = make("button", { type: "button", class: "more" });
      this.more.addEventListener("click", () => this.show(this.most + 4 * PAGE));
      table.closest(".scroll").after(this.more);
      [...table.tHead.rows[0].cells].forEach((head, place) => this.sortable(head, place));
    }

    sortable(head, place) {
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => this.sort(place, head.getAttribute("aria-sort") === "ascending" ? -1 : 1));
    }

    sort(place, direction) {
      [...this.table.tHead.rows[0].cells].forEach((head, at) => {
        if (at === place) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      });
      this.sorted = [place, direction];
      this.refresh();
    }

    ordered(rows) {
      if (!this.sorted) return rows;
      const [place, direction] = this.sorted, number = this.columns[place].number;
      const keyed = rows.map((row) => [number ? magnitude(row.text(place)) : row.text(place).toLowerCase(), row]);
      const missing = (key) => key !== key || key === DASH;
      keyed.sort(([a], [b]) => missing(a) - missing(b) || direction * (a < b ? -1 : a > b ? 1 : 0));
      return keyed.map(([, row]) => row);
    }

    filter(test) {
      this.kept = this.all.filter(test);
      this.most = PAGE;
      this.refresh();
    }

    refresh() {
      this.order = this.ordered(this.kept);
      this.show(this.most);
    }

    show(most) {
      this.most = most;
      const rows = this.order ?? (this.order = this.ordered(this.kept));
      this.body.replaceChildren(...rows.slice(0, most).flatMap((row) => this.build(row, this.columns)));
      const left = rows.length - most;
      this.more.hidden = left <= 0;
      this.more.textContent = left > 0 ? `Show ${Math.min(left, 4 * PAGE)} of ${left} more rows` : "";
    }
  }

  function stored(cells) {
    return { cells, text: (place) => parts(cells[place])[0] };
  }

  function plainRow(row, columns) {
    return [make("tr", { role: "row" }, ...row.cells.map((cell, place) => cellNode(cell, columns[place])))];
  }

  function drawn(row) {
    return { node: row, text: (place) => row.cells[place].textContent };
  }

  function startTables() {
    for (const table of document.querySelectorAll("table:not(#verdicts)")) {
      const long = table.dataset.rows;
      if (long) new Grid(table, data.tables[long].map(stored), plainRow).refresh();
      else if (table.tBodies[0].rows.length > 2) new Grid(table, [...table.tBodies[0].rows].map(drawn), (row) => [row.node]).more.hidden = true;
    }
  }

  // Charts of one verdict

  function frame(width, height, label) {
    return make("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "small" });
  }

  function span(values) {
    const low = Math.min(...values), high = Math.max(...values), room = (high - low) * 0.08 || Math.abs(high) * 0.05 || 1;
    return [low - room, high + room];
  }

  function axis(svg, y, low, high, height, width, show) {
    for (const share of [0.1, 0.5, 0.9]) {
      const value = low + share * (high - low);
      svg.append(make("svg:line", { x1: 64, x2: width, y1: y(value), y2: y(value), class: "grid" }));
      svg.append(make("svg:text", { x: 58, y: y(value) + 4, "text-anchor": "end" }, show(value)));
    }
  }

  function timeChart(found) {
    const width = 640, height = 150, raw = found.raw, points = raw ? raw.map((v) => [v, v, v, v, v]) : found.bins;
    const [low, high] = span(points.flatMap((p) => [p[0], p[4]]));
    const y = (value) => 8 + (height - 34) * (1 - (value - low) / (high - low));
    const x = (place) => 72 + (width - 82) * ((place + 0.5) / points.length);
    const show = (value) => seconds((1 + value / UNIT) * found.base_s);
    const what = raw ? `${found.samples} samples in the order taken` : `${found.samples} samples in the order taken, in ${points.length} bins: least, quartiles, most`;
    const svg = frame(width, height, `Time per call: ${what}; from ${show(Math.min(...points.map((p) => p[0])))} to ${show(Math.max(...points.map((p) => p[4])))}`);
    axis(svg, y, low, high, height, width, show);
    const wide = Math.max(2, ((width - 82) / points.length) * 0.6);
    points.forEach((p, place) => {
      if (raw) return svg.append(make("svg:circle", { cx: x(place), cy: y(p[2]), r: 2.6, class: "dot" }));
      svg.append(make("svg:line", { x1: x(place), x2: x(place), y1: y(p[0]), y2: y(p[4]), class: "range" }));
      svg.append(make("svg:rect", { x: x(place) - wide / 2, y: y(p[3]), width: wide, height: Math.max(1, y(p[1]) - y(p[3])), class: "box" }));
      svg.append(make("svg:line", { x1: x(place) - wide / 2, x2: x(place) + wide / 2, y1: y(p[2]), y2: y(p[2]), class: "middle" }));
    });
    svg.append(make("svg:text", { x: 72, y: height - 8 }, `time per call; ${what}`));
    return svg;
  }

  function ratioChart(verdict) {
    const values = verdict.data.filter((value) => value !== null);
    if (values.length < 2 || !verdict.span) return null;
    const [ratio, low, high, threshold] = verdict.span, width = 640, height = 66 + 8 * Math.min(values.length, 24);
    const [from, to] = span([...values, ...[low, high, ratio, threshold].filter((value) => value !== null)]);
    const x = (value) => 16 + (width - 32) * ((value - from) / (to - from));
    const svg = frame(width, height, `Each replicate's value, the interval and the threshold ${significant(threshold)}`);
    const foot = height - 22;
    svg.append(make("svg:line", { x1: x(threshold), x2: x(threshold), y1: 16, y2: foot, class: "threshold" }));
    const side = (value) => (x(value) < 90 ? "start" : x(value) > width - 90 ? "end" : "middle");
    svg.append(make("svg:text", { x: x(threshold), y: 11, "text-anchor": side(threshold) }, `needs ${verdict.text(5)}`));
    values.forEach((value, place) => svg.append(make("svg:circle", { cx: x(value), cy: 24 + ((place % 24) * (foot - 48)) / Math.min(values.length, 24), r: 3, class: "dot" })));
    if (low !== null && high !== null) svg.append(make("svg:line", { x1: x(low), x2: x(high), y1: foot - 12, y2: foot - 12, class: "interval" }));
    svg.append(make("svg:rect", { x: x(ratio) - 4, y: foot - 16, width: 8, height: 8, class: "dot" }));
    for (const [value, name] of [[low, "low"], [high, "high"]]) if (value !== null) svg.append(make("svg:text", { x: x(value), y: height - 6, "text-anchor": name === "low" && x(high) - x(low) > 90 ? "start" : name === "low" ? "end" : x(high) - x(low) > 90 ? "end" : "start" }, significant(value)));
    return svg;
  }

  // Evidence

  function lines(rows) {
    const body = make("tbody");
    for (const [name, shown, hint, tier] of rows) {
      const value = make("td", {}, shown === DASH ? dash(hint) : shown);
      if (tier) value.append(" ", make("span", { class: `tier ${tier}` }, tier));
      body.append(make("tr", {}, make("th", { scope: "row" }, name), value, make("td", { class: "note" }, shown === DASH ? `none: ${hint}` : hint)));
    }
    const head = make("tr", {}, ...["what", "value", "how it was obtained"].map((name) => make("th", { scope: "col" }, name)));
    return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "figures of the case" }, make("table", { class: "lines" }, make("thead", {}, head), body));
  }

  function replicates(found) {
    const head = make("tr", {}, ...["replicate", "time per call", "samples", "void"].map((name, place) => make("th", { scope: "col", class: place ? "n" : "" }, name)));
    const body = make("tbody");
    for (const [number, relative, samples, spoilt] of found.replicates) {
      const time = relative === null ? dash("no sample of it counts") : seconds((1 + relative / UNIT) * found.base_s);
      body.append(make("tr", {}, make("th", { scope: "row" }, `${number}`), ...[time, `${samples}`, `${spoilt}`].map((shown) => make("td", { class: "n" }, shown))));
    }
    return make("details", {}, make("summary", {}, `Its ${found.replicates.length} replicates`), make("table", {}, make("thead", {}, head), body));
  }

  function caseBox(role, found, open) {
    const box = make("details", { class: "case" }, make("summary", {}, make("b", {}, role), ` ${text(found.name)}`));
    const fill = () => {
      if (box.dataset.full) return;
      box.dataset.full = "1";
      if (found.raw || found.bins) if (found.samples) box.append(timeChart(found));
      box.append(lines(found.lines.map((line) => line.map(text))));
      if (found.replicates) box.append(replicates(found));
    };
    box.addEventListener("toggle", fill);
    if (open) { box.open = true; fill(); }
    return box;
  }

  function datumTable(verdict) {
    const body = make("tbody");
    verdict.data.forEach((value, place) => {
      const [name, unit] = data.names[verdict.names][place];
      body.append(make("tr", {}, make("th", { scope: "row" }, text(name)), make("td", { class: "n" }, value === null ? dash("not recorded") : `${value}`), make("td", {}, text(unit))));
    });
    if (verdict.clipped) body.append(make("tr", {}, make("td", { colspan: "3" }, `and ${verdict.clipped} more, in records.jsonl`)));
    const head = make("tr", {}, ...["datum", "value", "unit"].map((name) => make("th", { scope: "col" }, name)));
    return make("details", {}, make("summary", {}, `The ${verdict.data.length} data it rests on`), make("table", {}, make("thead", {}, head), body));
  }

  function list(title, items) {
    return items?.length ? make("div", {}, make("h3", {}, title), make("ul", {}, ...items.map((item) => make("li", {}, text(item))))) : null;
  }

  function evidence(verdict) {
    const about = make("dl", {});
    for (const [name, value] of data.claims[text(verdict.claim)] ?? []) about.append(make("dt", {}, text(name)), make("dd", {}, text(value)));
    const box = make("div", { class: "evidence" }, about);
    box.append(make("h3", {}, "Why this verdict"), make("p", {}, text(verdict.reason)));
    if (verdict.how) box.append(make("p", { class: "note" }, text(verdict.how)));
    if (verdict.data) box.append(...[ratioChart(verdict), datumTable(verdict)].filter(Boolean));
    box.append(...[list("Against each baseline", verdict.against), list("What would have given another verdict", verdict.flips)].filter(Boolean));
    (verdict.cases ?? []).forEach(([role, place], number) => box.append(caseBox(text(role), data.cases[place], number === 0)));
    if (verdict.repeat) box.append(make("p", {}, "Measure it again: ", make("code", {}, text(verdict.repeat))));
    box.append(make("p", { class: "note" }, "Cite this row as ", make("a", { href: `#${verdict.id}` }, `#${verdict.id}`)));
    return box;
  }

  // Verdicts

  const opened = new Set();

  function verdictRow(verdict, columns) {
    const isOpen = opened.has(verdict), button = make("button", { type: "button", class: "open", "aria-expanded": `${isOpen}`, "aria-controls": `e-${verdict.id}` }, parts(verdict.cells[0])[0]);
    const head = make("th", { scope: "row", role: "rowheader" }, button);
    const row = make("tr", { role: "row", id: verdict.id }, head, ...verdict.cells.slice(1).map((cell, place) => cellNode(cell, columns[place + 1])));
    button.addEventListener("click", () => toggle(verdict, row, button, columns.length));
    return isOpen ? [row, evidenceRow(verdict, columns.length)] : [row];
  }

  function evidenceRow(verdict, width) {
    return make("tr", { role: "row", id: `e-${verdict.id}`, class: "opened" }, make("td", { colspan: `${width}`, role: "cell" }, evidence(verdict)));
  }

  function toggle(verdict, row, button, width) {
    const open = !opened.has(verdict);
    button.setAttribute("aria-expanded", `${open}`);
    if (open) { opened.add(verdict); row.after(evidenceRow(verdict, width)); }
    else { opened.delete(verdict); row.nextElementSibling.remove(); }
  }

  function startVerdicts() {
    const table = document.getElementById("verdicts");
    table.setAttribute("role", "table");
    for (const head of table.tHead.rows[0].cells) head.setAttribute("role", "columnheader");
    table.tHead.rows[0].setAttribute("role", "row");
    const rows = data.verdicts.map((verdict) => Object.assign(verdict, stored(verdict.cells)));
    const grid = new Grid(table, rows, verdictRow), controls = document.getElementById("filters"), status = document.getElementById("count");
    const chosen = [...controls.querySelectorAll("select[data-facet]")], search = controls.querySelector("input"), order = document.getElementById("order");
    const apply = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const wanted = chosen.map((select) => [Number(select.dataset.facet), select.value]).filter(([, value]) => value);
      grid.filter((verdict) =>
        wanted.every(([facet, value]) => (value === "decided" ? text(verdict.facets[facet]) !== "not tested" : text(verdict.facets[facet]) === value)) &&
        words.every((word) => verdict.cells.some((_, place) => verdict.text(place).toLowerCase().includes(word))));
      status.textContent = `${grid.kept.length} of ${rows.length} verdicts`;
    };
    chosen.forEach((select) => select.addEventListener("change", apply));
    search.addEventListener("input", apply);
    order.addEventListener("change", () => (order.value === "" ? ((grid.sorted = null), grid.refresh()) : grid.sort(Number(order.value), 1)));
    controls.querySelector("button").addEventListener("click", () => {
      chosen.forEach((select) => (select.selectedIndex = 0));
      search.value = "";
      apply();
    });
    controls.hidden = false;
    const goTo = () => {
      const verdict = rows.find((row) => `#${row.id}` === decodeURIComponent(location.hash));
      if (!verdict) return;
      opened.add(verdict);
      grid.kept = [verdict, ...grid.kept.filter((row) => row !== verdict)];
      grid.refresh();
      document.getElementById(verdict.id).scrollIntoView();
    };
    apply();
    addEventListener("hashchange", goTo);
    goTo();
    addEventListener("beforeprint", () => grid.show(MOST_PRINTED));
  }

  // A reason that shows on focus as it does on hover

  function startTips() {
    const tip = make("div", { id: "tip", role: "tooltip", hidden: "hidden" });
    document.body.append(tip);
    addEventListener("focusin", ({ target }) => {
      tip.hidden = !target.classList?.contains("dash");
      if (tip.hidden) return;
      const box = target.getBoundingClientRect();
      tip.textContent = target.title;
      tip.style.top = `${box.bottom + 4}px`;
      tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 16))}px`;
    });
    addEventListener("focusout", () => (tip.hidden = true));
    addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));
  }

  if (data.verdicts) startVerdicts();
  startTables();
  startTips();
  document.documentElement.dataset.ready = "1";
})();
