// Parallel coordinates: an axis per setting and objective, a line per cell. Drag along an axis to keep the lines that cross there.
//
// Drawn here and not by plotly, whose own compiles functions from text; the content-security-policy forbids that.

import { h, number, svg } from "./dom.js";

const GAP = 112; // least pixels between two axes
const TOP = 62;
const HEIGHT = 240;
const SIDE = 64;
const LOG_FROM = 8; // positive numbers spread wider than this stand on a logarithmic axis
const LETTER = 6.2;

/** Three digits, without zeros that say nothing. */
const short = (value) => (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e4 ? String(Number(value.toPrecision(3))).replace(/^-/, "−") : number(value));

/** Where values stand on an axis: at(value) -> [0, 1] from the bottom, and the axis's ticks. */
export function scaleOf(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  if (!known.every((value) => typeof value === "number")) return ordinal(values);
  const missing = known.length < values.length;
  const low = Math.min(...known),
    high = Math.max(...known);
  if (!known.length || low === high) return ordinal(values);
  const log = low > 0 && high / low > LOG_FROM;
  const turn = log ? Math.log : (x) => x,
    unturn = log ? Math.exp : (x) => x;
  // cells without the number stand apart, below
  const foot = missing ? 0.14 : 0;
  const at = (value) =>
    value === null || value === undefined ? 0 : foot + ((1 - foot) * (turn(value) - turn(low))) / (turn(high) - turn(low));
  const distinct = [...new Set(known)].sort((a, b) => a - b);
  const marks = distinct.length <= 6 ? distinct : [0, 1 / 3, 2 / 3, 1].map((share) => unturn(turn(low) + share * (turn(high) - turn(low))));
  return {
    at,
    ticks: [...marks.map((value) => ({ at: at(value), text: short(value) })), ...(missing ? [{ at: 0, text: "–" }] : [])],
  };
}

/** Words, switches and lists: each its own place, in the order in which they come. */
function ordinal(values) {
  const text = (value) => (value === null || value === undefined ? "–" : typeof value === "number" ? short(value) : String(value));
  const names = [...new Set(values.map(text))];
  const place = (i) => (names.length > 1 ? i / (names.length - 1) : 0.5);
  return {
    at: (value) => place(names.indexOf(text(value))),
    ticks: names.map((name, i) => ({ at: place(i), text: name })),
  };
}

/** Words of a label in lines of at most so many letters. */
function lines(label, most) {
  const found = [];
  for (const word of label.split(/(?<=[ ._])/)) {
    if (found.length && (found.at(-1) + word).trimEnd().length <= most) found[found.length - 1] += word;
    else found.push(word);
  }
  return found.slice(0, 3);
}

export class Coordinates {
  /** names: of the lines; dimensions: [{key, label, values}]; changed(kept): a Set of names, after every brush. */
  constructor(names, dimensions, changed) {
    Object.assign(this, { names, changed, ranges: new Map(), shade: () => 0.5, href: () => "#" });
    this.axes = dimensions.map((dimension) => ({ ...dimension, scale: scaleOf(dimension.values) }));
    this.node = h("div", { class: "wide coordinates", role: "group", "aria-label": "Parallel coordinates: one axis per setting and objective" });
    this.watch = new ResizeObserver(() => this.draw());
  }

  show() {
    this.watch.observe(this.node);
    this.draw();
  }

  close() {
    this.watch.disconnect();
  }

  /** The names of the lines that cross every range. */
  kept() {
    const within = ({ key, scale, values }, i) => {
      const range = this.ranges.get(key);
      const at = scale.at(values[i]);
      return !range || (at >= range[0] - 1e-9 && at <= range[1] + 1e-9);
    };
    return new Set(this.names.filter((_, i) => this.axes.every((axis) => within(axis, i))));
  }

  /** range: [low, high] as shares of the axis, null for all of it. */
  brush(key, range) {
    if (range) this.ranges.set(key, range);
    else this.ranges.delete(key);
    this.draw();
    this.changed(this.kept());
  }

  clear() {
    this.ranges.clear();
    this.draw();
    this.changed(this.kept());
  }

  /** The ranges as the address has them: shares of the axis; `tell` reads them back. */
  told() {
    return [...this.ranges].map(([key, range]) => [key, range.map((share) => share.toFixed(3)).join("-")]);
  }

  tell(given) {
    for (const { key } of this.axes) {
      const ends = /^([01]\.\d+)-([01]\.\d+)$/.exec(given.get(key) || "");
      if (ends) this.ranges.set(key, [Number(ends[1]), Number(ends[2])]);
    }
  }

  draw() {
    const room = this.node.clientWidth;
    if (!room || !this.axes.length) return;
    const width = Math.max(room, 2 * SIDE + GAP * (this.axes.length - 1));
    const gap = this.axes.length > 1 ? (width - 2 * SIDE) / (this.axes.length - 1) : 0;
    const x = (i) => SIDE + i * gap,
      y = (share) => TOP + HEIGHT * (1 - share);
    const kept = this.kept();
    const picture = svg(
      "svg",
      { class: "parallel", width, height: TOP + HEIGHT + 26, viewBox: `0 0 ${width} ${TOP + HEIGHT + 26}`, role: "presentation" },
      // those that are left out lie below
      [...this.names.keys()]
        .sort((a, b) => kept.has(this.names[a]) - kept.has(this.names[b]))
        .map((i) => this.line(i, kept.has(this.names[i]), x, y)),
      this.axes.map((axis, i) => this.axis(axis, x(i), y, Math.floor(Math.min(gap || width, 2 * SIDE) / LETTER) - 2)),
    );
    const held = this.node.contains(document.activeElement) ? document.activeElement.dataset.axis : null;
    const scrolled = this.node.scrollLeft;
    this.node.replaceChildren(picture);
    this.node.scrollLeft = scrolled;
    if (held) this.node.querySelector(`[data-axis="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
  }

  line(i, on, x, y) {
    const points = this.axes.map(({ scale, values }, axis) => `${x(axis).toFixed(1)},${y(scale.at(values[i])).toFixed(1)}`);
    const path = svg("polyline", { points: points.join(" "), class: on ? "on" : "off", "data-cell": this.names[i] });
    const shade = this.shade(i);
    if (shade !== null) path.style.setProperty("--share", `${(100 * shade).toFixed(1)}%`);
    else path.classList.add("none");
    if (on) path.append(svg("title", {}, this.title(i)));
    return path;
  }

  title(i) {
    return this.axes.map(({ label, values }) => `${label}: ${typeof values[i] === "number" ? number(values[i], 4) : (values[i] ?? "–")}`).join("\n");
  }

  axis({ key, label, scale }, x, y, letters) {
    const range = this.ranges.get(key);
    const told = range ? `keeps ${this.words(scale, range)}` : "keeps all";
    const words = lines(label, letters);
    const area = svg("rect", {
      class: "hit",
      x: x - 20,
      y: TOP - 8,
      width: 40,
      height: HEIGHT + 16,
      tabindex: "0",
      role: "slider",
      "data-axis": key,
      "aria-orientation": "vertical",
      "aria-label": `${label}: drag, or arrow keys, to keep a part; Delete keeps all`,
      "aria-valuemin": "0",
      "aria-valuemax": "100",
      "aria-valuenow": String(Math.round(100 * (range ? (range[0] + range[1]) / 2 : 0.5))),
      "aria-valuetext": told,
    });
    area.addEventListener("pointerdown", (event) => this.drag(event, key, y));
    area.addEventListener("keydown", (event) => this.key(event, key, scale));
    return svg(
      "g",
      { class: "axis" },
      svg("line", { x1: x, x2: x, y1: y(0), y2: y(1) }),
      words.map((word, i) => svg("text", { class: "label", x, y: TOP - 18 - 14 * (words.length - 1 - i) }, word.trim())),
      range ? svg("rect", { class: "brush", x: x - 8, width: 16, y: y(range[1]) - 3, height: y(range[0]) - y(range[1]) + 6, rx: 3 }) : null,
      scale.ticks.map(({ at, text }) => [
        svg("line", { x1: x - 4, x2: x, y1: y(at), y2: y(at) }),
        svg("text", { class: "tick", x: x - 7, y: y(at) + 4 }, text.length > 9 ? `${text.slice(0, 8)}…` : text),
      ]),
      area,
    );
  }

  words(scale, [low, high]) {
    const within = scale.ticks.filter(({ at }) => at >= low - 1e-9 && at <= high + 1e-9).map(({ text }) => text);
    return within.length ? within.join(", ") : "a part between two marks";
  }

  /** A drag keeps what lies in it, a click keeps all. Fingers scroll the page everywhere but on the axes. */
  drag(event, key, y) {
    event.preventDefault();
    const frame = this.node.querySelector("svg").getBoundingClientRect();
    const share = (one) => Math.min(1, Math.max(0, 1 - (one.clientY - frame.top - TOP) / HEIGHT));
    const first = share(event);
    const move = (one) => {
      const ends = [first, share(one)].sort((a, b) => a - b);
      if (HEIGHT * (ends[1] - ends[0]) > 4) this.brush(key, ends);
    };
    const stop = (one) => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", stop);
      removeEventListener("pointercancel", stop);
      if (one.type === "pointerup" && HEIGHT * Math.abs(share(one) - first) <= 4) this.brush(key, null);
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", stop);
    addEventListener("pointercancel", stop);
  }

  /** Arrows step from mark to mark, with Shift they widen; Delete keeps all. */
  key(event, key, scale) {
    const places = scale.ticks.map(({ at }) => at).sort((a, b) => a - b);
    const range = this.ranges.get(key);
    const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (event.key === "Delete" || event.key === "Backspace") this.brush(key, null);
    else if (step) {
      const edge = range ? (step > 0 ? range[1] : range[0]) : step > 0 ? -1 : 2;
      const next = step > 0 ? places.find((at) => at > edge + 1e-6) : places.findLast((at) => at < edge - 1e-6);
      if (next === undefined) return;
      const pad = 0.02;
      const ends = [Math.max(0, next - pad), Math.min(1, next + pad)];
      this.brush(key, event.shiftKey && range ? [Math.min(range[0], ends[0]), Math.max(range[1], ends[1])] : ends);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
