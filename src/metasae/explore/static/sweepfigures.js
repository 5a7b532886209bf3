// The figures of a sweep: two objectives with their front, and the change over the penalty's strength. sweep: as the server gives it.

import { cellPath, drawnOf, settingText, valueText } from "./cells.js";
import { chart, colour, redraw } from "./charts.js";
import { card, h, number } from "./dom.js";

const NEAR = [0.16, 0.07]; // of the figure's width and height: how far a labelled mark keeps from others

/** Labels beyond plotly's markup: what is in angle brackets would be read as such. */
const plain = (text) => text.replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function select(label, keys, known, chosen, changed) {
  return h(
    "select",
    { "aria-label": label, onchange: (event) => changed(event.target.value) },
    keys.map((key) => h("option", { value: key, selected: key === chosen }, known[key].label)),
  );
}

const knownOf = (sweep) => Object.fromEntries(sweep.quantities.map((quantity) => [quantity.key, quantity]));
const go = (point) => {
  if (point.customdata) location.hash = cellPath(point.customdata);
};
const short = (cell) => plain((cell.kind || Object.values(cell.setting).map(valueText).join(" / ")).replace(/^(.{16}).{2,}$/s, "$1…"));
const worded = (quantity) => `${plain(quantity.label)}${quantity.better ? ` (${quantity.better} is better)` : ""}`;

/** The front of two measures as steps: what can be had of y where x is at least as good. points: [x, y]. */
export function staircase(points, betterX, betterY) {
  const rising = betterX !== "higher",
    lower = betterY !== "higher";
  const x = [],
    y = [];
  for (const [a, b] of [...points].sort((p, q) => (rising ? p[0] - q[0] : q[0] - p[0]) || (lower ? p[1] - q[1] : q[1] - p[1]))) {
    if (y.length && !(lower ? b < y.at(-1) : b > y.at(-1))) continue;
    if (y.length) {
      x.push(a);
      y.push(y.at(-1));
    }
    x.push(a);
    y.push(b);
  }
  return { x, y };
}

/** The names of the cells whose setting can be written beside their mark. points: [name, x, y]. */
function withRoom(points) {
  const span = (place) => Math.max(...points.map((point) => point[place])) - Math.min(...points.map((point) => point[place])) || 1;
  const size = [span(1), span(2)];
  const alone = ([name, x, y]) =>
    points.every((other) => other[0] === name || Math.abs(other[1] - x) > NEAR[0] * size[0] || Math.abs(other[2] - y) > NEAR[1] * size[1]);
  return new Set(points.filter(alone).map(([name]) => name));
}

/** 1, 2 and 5 of every power of ten within. */
function ticks(values) {
  const [low, high] = [Math.min(...values) / 1.5, Math.max(...values) * 1.5];
  const powers = Array.from({ length: Math.ceil(Math.log10(high)) - Math.floor(Math.log10(low)) + 1 }, (_, i) => Math.floor(Math.log10(low)) + i);
  const found = powers.flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power)).filter((value) => value >= low && value <= high);
  return found.length > 8 ? found.filter((value) => Number.isInteger(Math.round(1e6 * Math.log10(value)) / 1e6)) : found;
}

export function pareto(sweep, keptNow) {
  const known = knownOf(sweep);
  const title = "Objectives and their front";
  const [first, ...others] = sweep.objectives;
  const has = (key) => sweep.cells.filter((cell) => (cell.means[key] ?? null) !== null).length > 1;
  if (!others.length || !has(first) || !others.some(has)) return card(title, null, h("p", { class: "empty" }, "needs two cells with two objectives"));
  let key = others.find(has);
  const place = chart(
    "Every cell as a point, two objectives as axes; the line is the front of the two",
    () => {
      const cells = sweep.cells.filter((cell) => cell.state === "done" && [first, key].every((each) => (cell.means[each] ?? null) !== null));
      const kept = keptNow();
      const on = (cell) => !kept || kept.has(cell.name);
      const labelled = place.clientWidth > 480 ? withRoom(cells.map((cell) => [cell.name, cell.means[first], cell.means[key]])) : new Set();
      const points = (some, marker, name) => ({
        type: "scatter",
        mode: "markers+text",
        name,
        x: some.map((cell) => cell.means[first]),
        y: some.map((cell) => cell.means[key]),
        text: some.map((cell) => (labelled.has(cell.name) ? short(cell) : "")),
        textposition: "top center",
        textfont: { size: 10, color: colour("--soft") },
        cliponaxis: false,
        customdata: some.map((cell) => cell.name),
        hovertext: some.map((cell) => `${cell.name}<br>${plain(settingText(cell))}${cell.best ? "<br>nearest to the ideal" : ""}`),
        hovertemplate: `%{hovertext}<br>${plain(known[first].label)} %{x:.4g}<br>${plain(known[key].label)} %{y:.4g}<extra></extra>`,
        marker: { size: some.map((cell) => (cell.best ? 13 : 9)), opacity: some.map((cell) => (on(cell) ? 1 : 0.18)), ...marker },
      });
      const front = cells.filter((cell) => cell.on_front),
        rest = cells.filter((cell) => !cell.on_front);
      const accent = colour("--accent");
      return {
        traces: [
          {
            type: "scatter",
            mode: "lines",
            name: "front of these two",
            ...staircase(
              cells.map((cell) => [cell.means[first], cell.means[key]]),
              known[first].better,
              known[key].better,
            ),
            line: { color: accent, width: 1.2 },
            hoverinfo: "skip",
          },
          points(rest, { color: colour("--card"), line: { color: colour("--soft"), width: 1.5 } }, "beaten by another"),
          points(front, { color: accent, line: { color: front.map((cell) => (cell.best ? colour("--bad") : accent)), width: 2.5 } }, "front of all objectives"),
        ],
        layout: {
          showlegend: true,
          hovermode: "closest",
          margin: { l: 56, r: 22, t: 8, b: 42 },
          xaxis: { title: worded(known[first]) },
          yaxis: { title: worded(known[key]) },
        },
      };
    },
    "tall",
    go,
  );
  const choice = select("Objective on the vertical axis", others.filter(has), known, key, (value) => {
    key = value;
    redraw(place);
  });
  const note = `one mark per cell, means over seeds; orange ring: nearest to the ideal; ${sweep.many}`;
  return card(title, note, choice, place);
}

export function doses(sweep, keptNow) {
  const known = knownOf(sweep);
  const cells = sweep.cells.filter((cell) => cell.state === "done" && cell.kappa > 0);
  const keys = sweep.columns.filter((key) => cells.filter((cell) => drawnOf(known[key], cell.changes[key])).length > 1);
  if (new Set(cells.map((cell) => cell.kappa)).size < 2 || !keys.length) return null;
  let key = keys[0];
  const place = chart(
    "The change of a measure over the penalty's strength, a mark with its 95% interval per cell",
    () => {
      const kept = keptNow();
      const drawn = cells.map((cell) => ({ cell, ...drawnOf(known[key], cell.changes[key]) })).filter(({ at }) => at !== undefined);
      const accent = colour("--accent");
      const alpha = ({ cell }) => (!kept || kept.has(cell.name) ? 1 : 0.18);
      const within = drawn.filter((one) => one.ends);
      const marks = ticks(drawn.map(({ cell }) => cell.kappa));
      return {
        traces: [
          {
            type: "scatter",
            mode: "lines",
            x: within.flatMap(({ cell }) => [cell.kappa, cell.kappa, null]),
            y: within.flatMap(({ ends }) => [...ends, null]),
            line: { color: accent, width: 1.6 },
            opacity: 0.55,
            hoverinfo: "skip",
          },
          {
            type: "scatter",
            mode: "markers",
            x: drawn.map(({ cell }) => cell.kappa),
            y: drawn.map(({ at }) => at),
            customdata: drawn.map(({ cell }) => cell.name),
            text: drawn.map(({ cell }) => `${cell.name}<br>${plain(settingText(cell))}<br>${plain(cell.changes[key].change)}`),
            hovertemplate: "%{text}<br>kappa %{x:.3g}<extra></extra>",
            marker: {
              size: 9,
              opacity: drawn.map(alpha),
              color: drawn.map(({ cell }) => (cell.changes[key].clear ? accent : colour("--card"))),
              line: { color: accent, width: 1.6 },
            },
          },
        ],
        layout: {
          hovermode: "closest",
          xaxis: { title: "kappa = (lambda2 / sigma²) exp(−e / sigma²)", type: "log", tickvals: marks, ticktext: marks.map((mark) => number(mark, 1)) },
          yaxis: { title: `change of ${plain(known[key].label)} (${known[key].relative ? "%" : "hundredths"})`, zeroline: true, zerolinecolor: colour("--soft") },
        },
      };
    },
    "tall",
    go,
  );
  const choice = select("Measure", keys, known, key, (value) => {
    key = value;
    redraw(place);
  });
  return card("Change over the penalty's strength", `${sweep.subject} against ${sweep.baseline}, 95% interval; filled: clear; ${sweep.many}`, choice, place);
}
