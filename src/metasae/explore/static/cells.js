// The cells of a sweep as a table that is sorted by any column, and words about them.

import { h, minus, number, say } from "./dom.js";

export const cellPath = (name) => `#/cell/${encodeURIComponent(name)}`;

/** A setting as it was given, without the tail of its binary form. */
export const plainNumber = (value) => String(Number(value.toPrecision(6)));

export function valueText(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "number" ? plainNumber(value) : typeof value === "string" ? value : JSON.stringify(value);
}

/** `train.lambda2 0.3 / train.sigma_sq 1`. */
export function settingText(cell) {
  const told = Object.entries(cell.setting).map(([key, value]) => `${key} ${valueText(value)}`);
  return [...(cell.kind ? [cell.kind] : []), ...told].join(" / ") || "as the recipe";
}

/** What a change is sorted and drawn by: percent, or hundredths where a share is itself a difference. */
export function drawnOf(quantity, entry) {
  if (!entry || entry.difference === null) return null;
  if (quantity.relative && entry.percent !== null) return { at: entry.percent, ends: entry.percent_ci95 };
  return { at: 100 * entry.difference, ends: entry.ci95?.map((end) => 100 * end) };
}

/** The change, its interval below it. */
export function changeText(entry) {
  if (!entry) return "–";
  const [value, ends] = minus(entry.change).split(/ (?=\[)/);
  const told = ends ? [value, h("span", { class: "ends" }, ` ${ends}`)] : [value];
  if (!entry.clear) return told;
  return h("b", { class: entry.way, title: entry.reading }, told, h("span", { class: "hidden-text" }, ` (clear: ${entry.reading})`));
}

export function marks(cell) {
  const told = [cell.on_front ? "front" : null, cell.best ? "nearest to the ideal" : null, cell.state === "done" ? null : cell.state];
  return told.filter(Boolean).flatMap((word) => [h("span", { class: `tag ${word === "front" ? "front" : ""}` }, word), " "]);
}

/** A command with a button that copies it. */
export function command(text) {
  const button = h(
    "button",
    {
      type: "button",
      onclick: async () => {
        try {
          await navigator.clipboard.writeText(text);
          button.textContent = "copied";
        } catch {
          getSelection().selectAllChildren(code);
          button.textContent = "marked";
        }
        say(button.textContent);
      },
    },
    "copy",
  );
  const code = h("code", {}, text);
  return h("div", { class: "command" }, code, button);
}

export class Cells {
  /** sweep: as the server gives it; state: {sort, desc}; changed(): after a new order. */
  constructor(sweep, state, changed) {
    Object.assign(this, { sweep, state, changed, kept: null });
    const known = Object.fromEntries(sweep.quantities.map((quantity) => [quantity.key, quantity]));
    const has = (test) => sweep.cells.some(test);
    this.columns = [
      { key: "cell", label: "cell", text: true, of: (_, i) => i, show: (cell) => h("a", { href: cellPath(cell.name), class: "latent-link" }, h("span", { class: "id" }, cell.name)) },
      ...(has((cell) => cell.kind) ? [{ key: "kind", label: "kind", text: true, of: (cell) => cell.kind || null, show: (cell) => cell.kind || "–" }] : []),
      ...sweep.settings.map((key) => ({ key, label: key, of: (cell) => cell.setting[key] ?? null, show: (cell) => valueText(cell.setting[key]) })),
      ...sweep.columns.map((key) => ({
        key,
        label: known[key].label,
        better: known[key].better,
        title: known[key].meaning,
        of: (cell) => drawnOf(known[key], cell.changes[key])?.at ?? null,
        show: (cell) => changeText(cell.changes[key]),
      })),
      ...(has((cell) => cell.kappa !== null)
        ? [{ key: "kappa", label: "kappa", title: "the penalty's strength, (lambda2 / sigma^2) exp(-e / sigma^2)", of: (cell) => cell.kappa, show: (cell) => number(cell.kappa) }]
        : []),
      { key: "seeds", label: "seeds", of: (cell) => cell.seeds.length, show: (cell) => String(cell.seeds.length) },
      { key: "marks", label: "", text: true, of: (cell) => (cell.best ? 2 : cell.on_front ? 1 : 0), show: marks },
    ];
    this.count = h("span", { class: "note", role: "status" });
    this.node = h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Cells of the sweep" });
    this.draw();
  }

  draw() {
    const { sort, desc } = this.state;
    const by = this.columns.find(({ key }) => key === sort) || this.columns[0];
    const sign = desc === "1" ? -1 : 1;
    const rows = this.sweep.cells.map((cell, i) => ({ cell, i, value: by.of(cell, i) })).filter(({ cell }) => !this.kept || this.kept.has(cell.name));
    rows.sort((a, b) => {
      if (a.value === b.value) return a.i - b.i;
      if (a.value === null || b.value === null) return a.value === null ? 1 : -1;
      const both = typeof a.value === "number" && typeof b.value === "number";
      return sign * (both ? a.value - b.value : String(a.value).localeCompare(String(b.value), "en", { numeric: true }));
    });
    const head = ({ key, label, text, better, title }) =>
      h(
        "th",
        { scope: "col", class: text ? "text" : null, "aria-sort": key === by.key ? (desc === "1" ? "descending" : "ascending") : null },
        label
          ? h(
              "button",
              { type: "button", class: "plain sort", title: [title, "Click to sort"].filter(Boolean).join(". "), onclick: () => this.sortBy(key) },
              label,
              better ? h("span", { class: "soft", title: `${better} is better` }, better === "lower" ? "\u2060\u00a0↓" : "\u2060\u00a0↑") : null,
              key === by.key ? (desc === "1" ? "\u00a0▾" : "\u00a0▴") : "",
            )
          : h("span", { class: "hidden-text" }, "remarks"),
      );
    const body = rows.map(({ cell }) =>
      h(
        "tr",
        {
          class: "item go-to",
          tabindex: "-1",
          "data-cell": cell.name,
          // the first column stays in sight, so its link cannot lie over the row
          onclick: (event) => {
            if (!event.target.closest("a, button")) location.hash = cellPath(cell.name);
          },
        },
        this.columns.map((column) => h("td", { class: column.text ? "text" : null }, column.show(cell))),
      ),
    );
    const focused = this.node.contains(document.activeElement) ? document.activeElement.textContent : null;
    this.node.replaceChildren(
      h("table", { class: "cells", "aria-label": "Cells" }, h("thead", {}, h("tr", {}, this.columns.map(head))), h("tbody", {}, body)),
    );
    if (focused) [...this.node.querySelectorAll("th button")].find((button) => button.textContent.slice(0, 6) === focused.slice(0, 6))?.focus();
    this.count.textContent = `${rows.length} of ${this.sweep.cells.length} cells`;
  }

  sortBy(key) {
    const same = this.state.sort === key;
    Object.assign(this.state, { sort: key, desc: same && this.state.desc !== "1" ? "1" : "0" });
    this.draw();
    this.changed();
    say(`sorted by ${key}, ${this.state.desc === "1" ? "falling" : "rising"}`);
  }

  /** kept: a Set of names, or null for all. */
  filter(kept) {
    this.kept = kept;
    this.draw();
    say(this.count.textContent);
  }
}
