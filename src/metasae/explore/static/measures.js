// The table of measures: every arm's mean, the change against the baseline with its interval, and what that establishes.

import { armClass, h, minus, number, svg, term } from "./dom.js";

/** run: the overview; many: its conditions in words. */
export function measures(run, many) {
  const { equal, pairs } = unequalPairs(run);
  // a control that holds has nothing to show in a column of its own
  const arms = Object.keys(run.arms || {}).filter((arm) => !equal.some((name) => name.split(" vs ")[0] === arm));
  const body = h("div", {});
  const all = h("input", { type: "checkbox", onchange: () => body.replaceChildren(rowsOf(run, arms, pairs, all.checked)) });
  body.append(rowsOf(run, arms, pairs, false));
  return h(
    "section",
    { class: "card" },
    h(
      "div",
      { class: "card-head" },
      h("h2", {}, "Measures"),
      h(
        "p",
        { class: "note" },
        `Means over seeds. Each change has a 95% interval over paired seeds and blocks of documents; it is drawn in %, or in percentage points (pp) where the measure is a difference of shares. A filled mark is clear after Holm's correction, which covers the rows that have a reading. ${many}.`,
      ),
    ),
    h("label", { class: "note" }, all, " show all measures, not only the main ones"),
    equal.length ? h("p", { class: "note" }, `${equal.join(", ")}: every measure is exactly equal`) : null,
    body,
  );
}

/** equal: names of the pairs that are equal in every measure they have; pairs: [name, changes] of the others. */
export function unequalPairs(run) {
  const entries = Object.entries(run.pairs || {});
  const known = (pair) => Object.values(pair).filter((entry) => typeof entry.difference === "number");
  const isEqual = ([, pair]) => known(pair).length > 0 && known(pair).every((entry) => entry.difference === 0);
  return { equal: entries.filter(isEqual).map(([name]) => name), pairs: entries.filter((entry) => !isEqual(entry)) };
}

function rowsOf(run, arms, pairs, all) {
  const quantities = run.quantities.filter((q) => (all || q.main) && arms.some((arm) => meanOf(run, arm, q.key).value !== null));
  if (!quantities.length) return h("p", { class: "empty" }, "no measures yet");
  const reach = Object.fromEntries(pairs.map(([name, pair]) => [name, reachOf(quantities, pair)]));
  const rows = [];
  let group = null;
  for (const q of quantities) {
    if (q.group !== group) {
      group = q.group;
      rows.push(
        h("tr", { class: "group" }, h("th", { colspan: String(1 + arms.length + 3 * pairs.length), scope: "rowgroup" }, q.group_label)),
      );
    }
    const better = { lower: "↓", higher: "↑" }[q.better];
    rows.push(
      h(
        "tr",
        {},
        h(
          "th",
          { scope: "row" },
          term(q.label, [q.meaning, q.better && `${q.better} is better`].filter(Boolean).join("; ")),
          better ? h("span", { class: "soft", "aria-hidden": "true" }, ` ${better}`) : null,
        ),
        arms.map((arm) => meanCell(meanOf(run, arm, q.key))),
        pairs.map(([name, pair]) => changeCells(q, pair[q.key], name, reach[name], pairs.length > 1, otherThan(run, pair[q.key], name, q.key))),
      ),
    );
  }
  const heads = [
    h("th", { scope: "col" }, ""),
    ...arms.map((arm) =>
      h(
        "th",
        { scope: "col", class: "mean" },
        h(
          "span",
          { class: `sae ${armClass(arm)}` },
          h("span", { class: "dot", "aria-hidden": "true" }),
          `${arm} (${(run.arms[arm].seeds || []).length})`,
        ),
      ),
    ),
  ];
  for (const [name] of pairs)
    heads.push(h("th", { scope: "col" }, name), h("th", { scope: "col", class: "drawn" }), h("th", { scope: "col", class: "text" }, "reading"));
  return h(
    "div",
    { class: "wide measures", tabindex: "0", role: "group", "aria-label": "Measures" },
    h("table", { "aria-label": "Measures of every arm and their changes" }, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows)),
  );
}

/** An arm's mean, of the same seeds as the change in its row: where the first pair with the arm has fewer, over those, which are then named. */
function meanOf(run, arm, key) {
  const own = run.arms[arm],
    every = Object.keys(own.values?.[key] || {}).length;
  for (const [name, pair] of Object.entries(run.pairs || {})) {
    const side = { 0: "a", 1: "b" }[name.split(" vs ").indexOf(arm)],
      entry = pair[key];
    if (!side || !entry?.n_seeds || !entry.values?.length || (every && entry.n_seeds >= every)) continue;
    const seeds = entry.values.map(({ seed }) => seed);
    return { value: entry[side] ?? null, seeds: seeds.length < own.seeds.length ? seeds : null };
  }
  return { value: own.means?.[key] ?? null, seeds: null };
}

/** In words the means that a change is between, where the row shows others: of other seeds, or of a measure that is of two SAEs together. */
function otherThan(run, entry, name, key) {
  if (!entry || entry.difference === null || typeof entry.a !== "number" || typeof entry.b !== "number") return null;
  const shown = name.split(" vs ").map((arm) => (run.arms[arm] ? meanOf(run, arm, key).value : null));
  const same = [entry.a, entry.b].every((value, i) => shown[i] === null || Math.abs(value - shown[i]) <= 1e-9 * Math.abs(value));
  return same ? null : `${number(entry.a, 4)} against ${number(entry.b, 4)}`;
}

function meanCell({ value, seeds }) {
  const of = seeds && h("span", { class: "ends soft" }, `seed${seeds.length === 1 ? "" : "s"} ${seeds.join(", ")}`);
  return h("td", { class: "mean" }, number(value, 4), of);
}

/** Clear after Holm's correction; what was not among the measures corrected for is not. */
export const isClear = (entry) => entry.clear && entry.p_holm !== null && entry.p_holm !== undefined;

/** What a change is drawn in: percent, or hundredths where a share is itself a difference. */
function drawnOf(q, entry) {
  if (!entry || entry.difference === null) return null;
  if (q.relative === false || entry.percent === null) return { at: 100 * entry.difference, ends: entry.ci95?.map((end) => 100 * end) };
  return { at: entry.percent, ends: entry.percent_ci95 };
}

function reachOf(quantities, pair) {
  const drawn = quantities.map((q) => drawnOf(q, pair[q.key])).filter(Boolean);
  const points = Math.max(1, ...drawn.map(({ at }) => Math.abs(at)));
  const ends = Math.max(0, ...drawn.flatMap(({ ends }) => (ends || []).map(Math.abs)));
  return 1.05 * Math.max(Math.min(ends, 2 * points), points);
}

export function wayOf(q, entry) {
  return q.better && entry.difference !== 0 ? (entry.difference < 0 === (q.better === "lower") ? "better" : "worse") : "";
}

/** change and reading of an entry are the report's own. */
function changeCells(q, entry, name, reach, narrow, other) {
  if (!entry || entry.difference === null) return [h("td", {}, "–"), h("td", { class: "drawn" }), h("td", {})];
  const way = isClear(entry) ? wayOf(q, entry) : "";
  const [value, ends] = minus(entry.change).split(/ (?=\[)/);
  const seeds = entry.n_seeds ? `${entry.n_seeds} seed${entry.n_seeds === 1 ? "" : "s"}` : "";
  return [
    h("td", { class: way }, value, ends && h("span", { class: "ci" }, ` ${ends}`), other && h("span", { class: "ends soft" }, other)),
    h("td", { class: "drawn" }, forest(drawnOf(q, entry), reach, isClear(entry), name, narrow)),
    h(
      "td",
      { class: `text says ${way || "soft"}` },
      entry.reading,
      h("span", { class: "soft" }, entry.reading && seeds ? " · " : "", seeds),
    ),
  ];
}

/** The change as a mark on a line through 0; an interval may run out of the frame. */
function forest({ at, ends }, reach, clear, name, narrow) {
  const x = (value) => 95 + 88 * Math.max(-1.06, Math.min(1.06, value / reach));
  return svg(
    "svg",
    { class: `forest ${narrow ? "narrow" : ""} ${armClass(name.split(" vs ")[0])}`, viewBox: "0 0 190 18", "aria-hidden": "true" },
    svg("line", { class: "zero", x1: "95", x2: "95", y1: "0", y2: "18" }),
    ends ? svg("line", { x1: x(ends[0]), x2: x(ends[1]), y1: "9", y2: "9" }) : null,
    svg("circle", { cx: x(at), cy: "9", r: "3.6", class: clear ? "clear" : "" }),
  );
}
