// Themes, tables that sort, filter, hide columns and keep their state in the address, and plots that open records.
// Every page is whole and readable without any of it.
"use strict";

const THEMES = ["auto", "light", "dark"];

function storedTheme() {
  try { return localStorage.getItem("theme") || "auto"; } catch { return "auto"; } // storage may be off for local files
}

function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
}

setTheme(storedTheme()); // before the page is painted

function wireTheme() {
  const button = document.getElementById("theme");
  const show = (name) => { setTheme(name); button.textContent = `theme: ${name}`; };
  let theme = storedTheme();
  show(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try { localStorage.setItem("theme", theme); } catch { /* as above */ }
    show(theme);
  });
}

// A small helper: an element with attributes and children.
function made(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

class Table {
  constructor(node) {
    this.node = node;
    this.heads = [...node.tHead.rows[0].cells];
    this.titles = this.heads.map((h) => h.textContent.trim());
    this.body = node.querySelector("tbody.sortable");
    this.first = [...this.body.rows];
    this.state = { sort: "", find: "", hide: new Set() };
    this.heads.forEach((h, i) => h.querySelector("button").addEventListener("click", () => this.clicked(i)));
    this.tools();
    this.read();
    this.show();
  }

  tools() {
    const label = this.node.dataset.table;
    this.finder = made("input", { type: "search", placeholder: "filter rows", "aria-label": `Filter rows of ${label}`, class: "find" });
    this.finder.addEventListener("input", () => { this.state.find = this.finder.value; this.changed(); });
    this.boxes = this.titles.map((title, i) => {
      const box = made("input", { type: "checkbox" });
      box.addEventListener("change", () => { this.state.hide[box.checked ? "delete" : "add"](title); this.changed(); });
      return i ? made("label", {}, box, ` ${title}`) : null; // rows keep their name
    });
    const columns = made("details", { class: "columns" }, made("summary", {}, "columns"), made("div", {}, ...this.boxes.filter(Boolean)));
    columns.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { columns.open = false; columns.querySelector("summary").focus(); }
    });
    document.addEventListener("click", (event) => { if (!columns.contains(event.target)) columns.open = false; });
    const save = (kind, text, type) => {
      const button = made("button", { type: "button", "aria-label": `${kind} of ${label}` }, kind);
      button.addEventListener("click", () => download(`${this.node.id}.${kind.toLowerCase()}`, text.call(this), type));
      return button;
    };
    this.count = made("span", { class: "count", role: "status" });
    this.node.closest(".scroll").before(made("div", { class: "tools" }, this.finder, columns,
      save("CSV", this.csv, "text/csv"), save("JSON", this.json, "application/json"), this.count));
  }

  // The address holds what differs from the page as it is written: ?<table>.sort=gain,descending&<table>.find=kd
  read() {
    const asked = new URLSearchParams(location.search), id = this.node.id;
    this.state.sort = asked.get(`${id}.sort`) || "";
    this.state.find = asked.get(`${id}.find`) || "";
    const hidden = (asked.get(`${id}.hide`) || "").split("|").filter((title) => this.titles.includes(title));
    this.state.hide = new Set(hidden);
    this.finder.value = this.state.find;
  }

  changed() {
    const address = new URL(location.href), id = this.node.id;
    const values = { sort: this.state.sort, find: this.state.find, hide: [...this.state.hide].join("|") };
    for (const [name, value] of Object.entries(values)) {
      if (value) address.searchParams.set(`${id}.${name}`, value);
      else address.searchParams.delete(`${id}.${name}`);
    }
    try { history.replaceState(null, "", address); } catch { /* some browsers forbid it for local files */ }
    this.show();
  }

  clicked(i) {
    const head = this.heads[i], now = head.getAttribute("aria-sort");
    const order = now === "none" ? head.dataset.first : now === "ascending" ? "descending" : "ascending";
    this.state.sort = `${this.titles[i]},${order}`;
    this.changed();
  }

  show() {
    this.sort();
    const wanted = this.state.find.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of this.first) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    this.count.textContent = wanted.length ? `${shown} of ${this.first.length}` : "";
    this.titles.forEach((title, i) => {
      const hide = i > 0 && this.state.hide.has(title);
      for (const row of this.node.rows) if (row.cells[i]) row.cells[i].hidden = hide;
      if (this.boxes[i]) this.boxes[i].querySelector("input").checked = !hide;
    });
  }

  sort() {
    const cut = this.state.sort.lastIndexOf(",");
    const column = this.titles.indexOf(this.state.sort.slice(0, cut)), order = this.state.sort.slice(cut + 1);
    this.heads.forEach((h, i) => h.setAttribute("aria-sort", i === column ? order : "none"));
    if (column < 0) return;
    const sign = order === "ascending" ? 1 : -1, number = this.heads[column].dataset.kind === "number";
    const value = (row) => row.cells[column].dataset.value;
    const sorted = this.first.map((row, i) => ({ row, i, v: value(row) })).sort((a, b) => {
      if (a.v === "" || b.v === "") return (a.v === "") - (b.v === "") || a.i - b.i; // blanks stay last either way
      return sign * (number ? a.v - b.v : a.v.localeCompare(b.v)) || a.i - b.i;
    });
    this.body.append(...sorted.map(({ row }) => row));
  }

  // What is shown, as values: a column with intervals becomes two.
  values() {
    const rows = [...this.node.tBodies].flatMap((body) => [...body.rows]).filter((row) => !row.hidden);
    const columns = this.heads.map((head, i) => ({ i, head, title: this.titles[i] })).filter(({ head }) => !head.hidden);
    return rows.map((row) => {
      const said = {};
      for (const { i, head, title } of columns) {
        const cell = row.cells[i], value = cell.dataset.value;
        said[title] = value === "" ? null : head.dataset.kind === "number" ? Number(value) : cell.textContent.trim();
        if (rows.some((r) => r.cells[i].dataset.half)) said[`${title} ±`] = cell.dataset.half ? Number(cell.dataset.half) : null;
      }
      return said;
    });
  }

  json() { return `${JSON.stringify(this.values(), null, 1)}\n`; }

  csv() {
    const rows = this.values();
    const field = (value) => {
      if (value === null) return "";
      if (typeof value === "number") return String(value);
      const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value; // a spreadsheet would run it as a formula
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const names = Object.keys(rows[0] || {});
    return [names, ...rows.map((row) => names.map((n) => row[n]))].map((line) => line.map(field).join(",")).join("\r\n") + "\r\n";
  }
}

function download(name, text, type) {
  const link = made("a", { download: name, href: URL.createObjectURL(new Blob([text], { type })) });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function wirePlots() {
  for (const mark of document.querySelectorAll(".mark[data-open]")) {
    mark.addEventListener("click", () => document.getElementById(mark.dataset.open)?.showPopover());
  }
  for (const button of document.querySelectorAll(".key button")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      const line = button.closest("figure").querySelector(`.canvas [data-series="${button.dataset.series}"]`);
      line.style.display = on ? "" : "none";
    });
  }
}

function wireCode() {
  for (const block of document.querySelectorAll("pre.code")) {
    const button = made("button", { type: "button", class: "copy", "aria-label": `Copy: ${block.getAttribute("aria-label")}` }, "copy");
    button.addEventListener("click", async () => {
      const said = block.textContent;
      try { await navigator.clipboard.writeText(said); button.textContent = "copied"; } catch { getSelection().selectAllChildren(block); button.textContent = "selected"; }
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
    const holder = made("div", { class: "codes" });
    block.replaceWith(holder);
    holder.append(block, button);
  }
}

document.addEventListener("DOMContentLoaded", () => {
  wireTheme();
  for (const node of document.querySelectorAll("table.results[id]")) new Table(node);
  wirePlots();
  wireCode();
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.closest("input, textarea, select")) return;
    const finder = document.querySelector(".find");
    if (finder) { event.preventDefault(); finder.focus(); }
  });
});
