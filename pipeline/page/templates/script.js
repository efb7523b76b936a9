// Sorts, filters and saves tables, marks the section that is read, and shows raw values; without it the page is whole.
"use strict";
(() => {
  const FILTERED = 12; // rows from which on a table has a filter

  const make = (name, attributes, ...inside) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...inside);
    return element;
  };

  // What a cell says, without marks for the eye and without the raw values behind it.
  const words = cell => {
    const copy = cell.cloneNode(true);
    for (const extra of copy.querySelectorAll("[popover], [aria-hidden]")) extra.remove();
    for (const part of copy.querySelectorAll("span")) part.before(" ");
    return copy.textContent.replace(/\s+/g, " ").trim();
  };

  // The figures of a cell by their kind: "" (the figure itself), low, high, n; else its words.
  const figures = cell => {
    const found = [...cell.querySelectorAll("data")].map(one => [one.dataset.kind ?? "", one.value]);
    return new Map(found.some(([kind]) => kind === "") ? found : [["", words(cell)]]);
  };

  const number = text => {
    const found = /^[±]?\s*(-?(?:\d[\d,]*)?\.?\d+(?:e[+-]?\d+)?)/i.exec(text.replace(/−/g, "-"));
    return found ? Number(found[1].replaceAll(",", "")) : NaN;
  };

  // Rows of cells, those that span several places in each of them.
  const grid = rows => {
    const places = rows.map(() => []);
    rows.forEach((row, y) => {
      let x = 0;
      for (const cell of row.cells) {
        while (places[y][x]) x += 1;
        for (let down = 0; down < cell.rowSpan && y + down < rows.length; down += 1)
          for (let right = 0; right < cell.colSpan; right += 1) places[y + down][x + right] = cell;
      }
    });
    return places;
  };

  const csv = table => {
    const heads = grid([...table.tHead.rows]);
    const cells = grid([...table.tBodies[0].rows]).map(row => row.map(figures));
    const columns = (cells[0] ?? []).map((_, x) => {
      const name = [...new Set(heads.map(row => row[x]))].map(words).filter(Boolean).join(" ");
      const kinds = ["", "low", "high", "n"].filter(kind => cells.some(row => row[x]?.has(kind)));
      return {x, name, kinds};
    });
    const lines = cells.map(row => columns.flatMap(({x, kinds}) => kinds.map(kind => row[x]?.get(kind) ?? "")));
    lines.unshift(columns.flatMap(({name, kinds}) => kinds.map(kind => `${name} ${kind}`.trim())));
    return lines.map(line => line.map(value => `"${value.replaceAll('"', '""')}"`).join(",")).join("\n") + "\n";
  };

  const save = (table, name) => {
    const address = URL.createObjectURL(new Blob([csv(table)], {type: "text/csv"}));
    make("a", {href: address, download: `${name.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 60)}.csv`}).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };

  const sort = (table, heads, head, original) => {
    const order = {ascending: "descending", descending: ""}[head.getAttribute("aria-sort")] ?? "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    if (order) head.setAttribute("aria-sort", order);
    const keyed = original.map(row => [figures(row.cells[head.cellIndex]).get(""), row]);
    const known = keyed.filter(([text]) => text !== "" && text !== "–");
    const rest = keyed.filter(([text]) => text === "" || text === "–");
    const numeric = known.every(([text]) => !Number.isNaN(number(text)));
    const compare = numeric ? (a, b) => number(a) - number(b) : (a, b) => a.localeCompare(b, "en", {numeric: true});
    const sign = order === "descending" ? -1 : 1;
    if (order) known.sort(([a], [b]) => sign * compare(a, b));
    table.tBodies[0].append(...(order ? [...known, ...rest] : keyed).map(([, row]) => row));
  };

  const furnish = table => {
    const rows = [...table.tBodies[0].rows];
    const region = table.closest(".scroll") ?? table;
    const name = region.getAttribute("aria-label") ?? `${table.closest("article")?.querySelector("h3").textContent} evidence`;
    const button = make("button", {type: "button", "aria-label": `Download as CSV: ${name}`}, "Download as CSV");
    button.addEventListener("click", () => save(table, name));
    region.after(make("p", {class: "tools"}, button));
    const spans = table.tBodies[0].querySelector("[rowspan], [colspan]");
    if (spans || rows.length < 2) return;
    const heads = [...table.tHead.rows].at(-1).cells;
    for (const head of table.classList.contains("evidence") ? [] : heads) {
      head.replaceChildren(make("button", {type: "button", class: "sort"}, ...head.childNodes));
      head.firstChild.addEventListener("click", () => sort(table, heads, head, rows));
    }
    if (rows.length < FILTERED) return;
    const field = make("input", {type: "search", autocomplete: "off", spellcheck: "false"});
    const status = make("span", {role: "status"});
    field.addEventListener("input", () => {
      const wanted = field.value.toLowerCase().split(/\s+/);
      for (const row of rows) row.hidden = !wanted.every(word => words(row).toLowerCase().includes(word));
      const left = rows.filter(row => !row.hidden).length;
      status.textContent = field.value ? `${left} of ${rows.length} rows` : "";
    });
    region.before(make("p", {class: "tools"}, make("label", {}, "Filter rows ", field), " ", status));
  };

  // Raw values appear beside their figure when it is pointed at or has the focus; a click alone shows them without this.
  const reveal = button => {
    const behind = document.getElementById(button.getAttribute("popovertarget"));
    if (!behind?.showPopover) return;
    const show = () => {
      if (!behind.matches(":popover-open")) behind.showPopover({source: button});
    };
    const hide = event => {
      if (event.relatedTarget && (behind.contains(event.relatedTarget) || button.contains(event.relatedTarget))) return;
      if (behind.matches(":popover-open")) behind.hidePopover();
    };
    behind.addEventListener("toggle", () => {
      const at = button.getBoundingClientRect();
      const most = document.documentElement.clientWidth - behind.offsetWidth - 8;
      const above = at.bottom + behind.offsetHeight > innerHeight && at.top > behind.offsetHeight;
      behind.classList.add("placed");
      behind.style.left = `${scrollX + Math.max(8, Math.min(at.left, most))}px`;
      behind.style.top = `${scrollY + (above ? at.top - behind.offsetHeight : at.bottom)}px`;
    });
    for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, show);
    for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, hide);
    behind.addEventListener("pointerleave", hide);
  };

  const follow = () => {
    const links = new Map([...document.querySelectorAll(".contents a")].map(link => [link.hash.slice(1), link]));
    const watch = new IntersectionObserver(
      sections => {
        for (const {target, isIntersecting} of sections) {
          if (isIntersecting) links.get(target.id).setAttribute("aria-current", "true");
          else links.get(target.id).removeAttribute("aria-current");
        }
      },
      {rootMargin: "-25% 0px -75% 0px"},
    );
    for (const id of links.keys()) watch.observe(document.getElementById(id));
  };

  for (const table of document.querySelectorAll("table:not(.facts)")) furnish(table);
  for (const button of document.querySelectorAll(".raw")) reveal(button);
  follow();
})();
