// A list of latents of any length: only the rows in sight exist, and their numbers come a page at a time.

import { data, STATIC } from "./data.js";
import { chip, chips, h, latentLink, number, say, term, valueOf } from "./dom.js";

export const PAGE = 100;
const SPARE = 8;
const FIRST_COLUMNS = ["rate", "max", "nearest_phi", "match_cosine", "meta_e", "split_score"];
const places = new Map(); // list and filters -> how far it was scrolled and which row was chosen

export class List {
  constructor(sae, state, first) {
    Object.assign(this, { sae, state, total: first.total, columns: first.columns, fields: {}, chosen: -1, turn: 0 });
    this.pages = new Map([[0, first.rows]]);
    this.asked = new Set([0]);
    this.shownRows = new Map();
    this.columnsShown = this.remembered();
    this.count = h("span", { class: "note", role: "status" });
    this.space = h("div", { class: "vspace", role: "rowgroup" });
    this.heads = h("div", { class: "row heads", role: "row" });
    this.node = h("div", { class: "vlist", role: "table", tabindex: "0", "aria-label": `Latents of ${sae}` }, this.heads, this.space);
    this.node.addEventListener("scroll", () => this.soon(), { passive: true });
    this.narrow = matchMedia("(max-width: 640px)");
    this.resized = () => this.layout();
    this.narrow.addEventListener("change", this.resized);
    addEventListener("resize", this.resized);
  }

  close() {
    places.set(this.place(), { top: this.node.scrollTop, chosen: this.chosen });
    this.narrow.removeEventListener("change", this.resized);
    removeEventListener("resize", this.resized);
  }

  place() {
    return JSON.stringify([this.sae, this.state]);
  }

  numbers() {
    return this.columns.filter((column) => column.kind === "number" && column.key !== "latent" && !column.empty);
  }

  remembered() {
    const keys = this.numbers().map((column) => column.key);
    let wanted = [];
    try {
      wanted = JSON.parse(localStorage.getItem("metasae-columns") || "[]");
    } catch {
      /* another version's */
    }
    const known = wanted.filter((key) => keys.includes(key));
    return new Set(known.length ? known : keys.filter((key) => FIRST_COLUMNS.includes(key)));
  }

  picker() {
    return h(
      "details",
      { class: "pick" },
      h("summary", {}, "Columns"),
      h(
        "div",
        {},
        this.numbers().map(({ key, label, meaning }) => {
          const box = h("input", {
            type: "checkbox",
            checked: this.columnsShown.has(key),
            onchange: () => {
              if (box.checked) this.columnsShown.add(key);
              else this.columnsShown.delete(key);
              localStorage.setItem("metasae-columns", JSON.stringify([...this.columnsShown]));
              this.layout();
            },
          });
          return h("label", {}, box, term(label, meaning));
        }),
      ),
    );
  }

  /** On the page now: sizes are known. */
  show() {
    const { top, chosen } = places.get(this.place()) || { top: 0, chosen: -1 };
    this.chosen = chosen;
    this.layout();
    this.node.scrollTop = top;
    this.draw();
    if (chosen >= 0) this.shownRows.get(chosen)?.focus({ preventScroll: true });
    this.news();
  }

  layout() {
    const narrow = this.narrow.matches;
    this.height = narrow ? 44 : 34;
    let shown = this.numbers().filter(({ key }) => this.columnsShown.has(key));
    // what the list is sorted by is always in sight, and on a phone nothing else
    const sorted = this.numbers().filter(({ key }) => key === this.state.sort);
    if (narrow) shown = [...sorted, ...shown.filter(({ key }) => key === "rate")].slice(0, 1);
    else if (sorted.length && !shown.includes(sorted[0])) shown = [...shown, sorted[0]];
    this.shown = shown;
    const explained = !narrow && [...this.pages.values()].flat().some((row) => row.explanation);
    this.explained = explained;
    // [least width in pixels, share of what is left over]
    const widths = [
      [narrow ? 50 : 60, 0],
      [narrow ? 110 : 180, 1],
      ...(explained ? [[180, 1.4]] : []),
      ...(narrow || STATIC ? [] : [[92, 0]]),
      ...shown.map(() => [narrow ? 72 : 94, 0]),
    ];
    this.node.style.setProperty(
      "--columns",
      widths.map(([least, share]) => (share ? `minmax(${least}px, ${share}fr)` : `${least}px`)).join(" "),
    );
    this.node.style.setProperty("--width", `${widths.reduce((sum, [least]) => sum + least + 11, 6)}px`);
    this.node.style.setProperty("--row", `${this.height}px`);
    const head = (key, label, kind, title) => {
      const cell = h(
        "span",
        {
          role: "columnheader",
          class: kind,
          "aria-sort": this.state.sort === key ? (this.state.desc === "0" ? "ascending" : "descending") : null,
        },
        h(
          "button",
          { type: "button", "aria-description": title || null, onclick: () => this.sortBy(key) },
          label,
          this.state.sort === key ? (this.state.desc === "0" ? "\u00a0↑" : "\u00a0↓") : "",
        ),
      );
      cell.firstChild.hint = () => title;
      return cell;
    };
    this.heads.replaceChildren(
      head("latent", "latent", "text"),
      h("span", { role: "columnheader", class: "text soft" }, "top tokens"),
      ...(explained ? [h("span", { role: "columnheader", class: "text soft" }, "explanation")] : []),
      ...(narrow || STATIC ? [] : [h("span", { role: "columnheader", class: "text soft" }, "label")]),
      ...shown.map(({ key, label, meaning }) => head(key, label, null, meaning)),
    );
    this.space.replaceChildren();
    this.shownRows.clear();
    this.space.style.height = `${this.total * this.height}px`;
    this.node.setAttribute("aria-rowcount", String(this.total + 1));
    this.draw();
  }

  news() {
    const text = `${number(this.total)} latent${this.total === 1 ? "" : "s"}${this.state.sort === "specific" && this.total > 1 ? ", the most specific first" : ""}`;
    this.count.textContent = text;
    say(text);
  }

  soon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const first = Math.max(0, Math.floor(this.node.scrollTop / this.height) - SPARE);
    const last = Math.min(this.total, Math.ceil((this.node.scrollTop + this.node.clientHeight) / this.height) + SPARE);
    for (const [i, row] of this.shownRows)
      if (i < first || i >= last) {
        row.remove();
        this.shownRows.delete(i);
      }
    for (let i = first; i < last; i++) {
      const values = this.pages.get(Math.floor(i / PAGE))?.[i % PAGE];
      const there = this.shownRows.get(i);
      if (there && there.filled >= Boolean(values)) continue;
      const row = this.row(i, values);
      if (there) there.replaceWith(row);
      else this.space.append(row);
      this.shownRows.set(i, row);
    }
    clearTimeout(this.asking);
    this.asking = setTimeout(() => this.ask(first, last), 40);
  }

  ask(first, last) {
    for (let number = Math.floor(first / PAGE); number <= Math.floor(Math.max(last - 1, 0) / PAGE); number++) {
      if (this.asked.has(number)) continue;
      this.asked.add(number);
      const turn = this.turn;
      data.latents(this.sae, { ...this.state, offset: number * PAGE, limit: PAGE }).then(
        ({ rows }) => {
          if (turn === this.turn) {
            this.pages.set(number, rows);
            this.draw();
          }
        },
        () => this.asked.delete(number),
      );
    }
  }

  /** The few named, before them the one that a search found. */
  tokens({ top_tokens, found }) {
    const named = chips(top_tokens, 8);
    if (found) named.prepend(chip(found, "token found", true));
    return named;
  }

  row(i, values) {
    const row = h("div", {
      class: `row item${i === this.chosen ? " chosen" : ""}`,
      role: "row",
      tabindex: "-1",
      "aria-rowindex": String(i + 2),
      "data-row": String(i),
    });
    row.filled = values ? 1 : 0;
    row.style.transform = `translateY(${i * this.height}px)`;
    if (!values) {
      row.append(h("span", { class: "text soft", role: "cell" }, "…"));
      return row;
    }
    row.append(
      h(
        "span",
        { class: "text", role: "cell" },
        latentLink(this.sae, values.latent, false, true),
      ),
      h("span", { class: "text", role: "cell" }, this.tokens(values)),
      ...(this.explained ? [h("span", { class: "text", role: "cell", title: values.explanation }, values.explanation || "")] : []),
      ...(this.narrow.matches || STATIC
        ? []
        : [h("span", { class: "text", role: "cell" }, values.label ? h("span", { class: "tag" }, values.label) : "")]),
      ...this.shown.map(({ key }) => h("span", { role: "cell" }, valueOf(key, values[key]))),
    );
    row.addEventListener("click", () => {
      this.chosen = i;
    });
    return row;
  }

  step(by) {
    if (!this.total) return;
    const before = this.shownRows.get(this.chosen);
    this.chosen = Math.min(Math.max(this.chosen + by, 0), this.total - 1);
    const top = this.chosen * this.height,
      room = this.node.clientHeight - this.heads.offsetHeight;
    if (top < this.node.scrollTop) this.node.scrollTop = top;
    else if (top + this.height > this.node.scrollTop + room) this.node.scrollTop = top + this.height - room;
    this.draw();
    before?.classList.remove("chosen");
    const row = this.shownRows.get(this.chosen);
    row?.classList.add("chosen");
    row?.focus({ preventScroll: true });
  }

  sortBy(key) {
    this.change(
      this.state.sort === key ? { desc: this.state.desc === "0" ? "1" : "0" } : { sort: key, desc: key === "latent" ? "0" : "1" },
    );
  }

  /** A search puts the most specific first; without one the list has its order of before. */
  orderFor({ search, sort }) {
    if (search === undefined || sort) return {};
    const { sort: now, desc } = this.state;
    if (search && now !== "specific") {
      this.before = { sort: now, desc };
      return { sort: "specific", desc: "1" };
    }
    return !search && now === "specific" ? (this.before ?? { sort: "rate", desc: "1" }) : {};
  }

  /** Another order or filter: asked for, put into the address, shown from the top. */
  async change(values) {
    values = { ...values, ...this.orderFor(values) };
    Object.assign(this.state, values);
    for (const [name, value] of Object.entries(values)) {
      const field = this.fields[name];
      if (field && field !== document.activeElement) field.value = value;
    }
    const turn = ++this.turn;
    this.changed?.();
    const given = Object.entries(this.state).filter(([key, value]) => value !== "" && !(key === "desc" && value === "1"));
    history.replaceState(null, "", `#/latents/${encodeURIComponent(this.sae)}${given.length ? "?" + new URLSearchParams(given) : ""}`);
    try {
      const answer = await data.latents(this.sae, { ...this.state, offset: 0, limit: PAGE });
      if (turn !== this.turn) return;
      this.total = answer.total;
      this.pages = new Map([[0, answer.rows]]);
      this.asked = new Set([0]);
      this.chosen = -1;
      this.node.scrollTop = 0;
      this.layout();
      this.news();
    } catch (error) {
      if (turn === this.turn) {
        this.count.textContent = error.message;
        say(error.message);
      }
    }
  }
}
