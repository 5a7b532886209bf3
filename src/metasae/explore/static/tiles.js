// The overview's three tiles: what known features say, how latents fire and lie, and what it costs in fidelity.

import { armClass, h, minus, number, term } from "./dom.js";
import { isClear, unequalPairs, wayOf } from "./measures.js";

const MOST = 5;
const KINDS = [
  ["truth", "Known features", "Features that are known without the SAE: spike-ins and labels from the text. They alone can say which arm is more atomic.", "No known features were measured. Spike-ins (spikes.n) or concepts (measure.concepts) would show which arm is more atomic."],
  ["description", "Firing and rows", "How often latents fire together, and how similar their rows are. These measures describe an SAE; neither direction is better.", "not measured yet"],
  ["fidelity", "Fidelity", "How well the SAE reconstructs the activations, and how much worse the model gets with the reconstruction in their place.", "not measured yet"],
];

/** run: the overview. The pair that differs from the baseline is shown; a choice where there are several. */
export function tiles(run) {
  const { equal, pairs } = unequalPairs(run);
  if (!pairs.length) return null;
  const body = h("div", { class: "three" });
  const show = ([name, pair]) => body.replaceChildren(...KINDS.map((kind) => tile(run, name, pair, kind)));
  const pick = h(
    "select",
    { "aria-label": "Arms compared", onchange: () => show(pairs[pick.selectedIndex]) },
    pairs.map(([name]) => h("option", {}, name)),
  );
  show(pairs[0]);
  return h(
    "div",
    { class: "stack" },
    pairs.length > 1 ? h("label", { class: "note" }, "Compared: ", pick) : null,
    body,
    equal.length ? h("p", { class: "note" }, `${equal.join(", ")}: every measure is equal, as expected.`) : null,
  );
}

function tile(run, name, pair, [kind, title, meaning, none]) {
  const [arm, baseline] = name.split(" vs ");
  const rows = chosen(run.quantities.filter((q) => q.kind === kind && q.main && pair[q.key] && pair[q.key].difference !== null));
  return h(
    "section",
    { class: `card tile ${armClass(arm)}` },
    h("h2", {}, term(title, meaning)),
    rows.length ? h("p", { class: "note" }, `${baseline} → ${arm}; the change with its 95% interval`) : null,
    rows.length
      ? h("ul", { class: "changes", "aria-label": `${title}: changes` }, rows.map((q) => change(q, pair[q.key])))
      : h("p", { class: "empty" }, none),
  );
}

/** A few of the main measures: of several groups two each, else the first four. */
function chosen(quantities) {
  const groups = new Set(quantities.map(({ group }) => group));
  const each = groups.size > 1 ? 2 : 4;
  return [...groups].flatMap((group) => quantities.filter((q) => q.group === group).slice(0, each)).slice(0, MOST);
}

function change(q, entry) {
  const clear = isClear(entry);
  const [value, interval] = minus(entry.change).split(/ (?=\[)/);
  const better = q.better ? `${q.better} is better` : null;
  return h(
    "li",
    {},
    h("span", {}, term(q.label, [q.meaning, better].filter(Boolean).join("; "))),
    h("b", { class: clear ? wayOf(q, entry) : "" }, value),
    h("span", { class: "soft" }, `${number(entry.b, 4)} → ${number(entry.a, 4)}`),
    h("span", { class: "soft" }, interval || ""),
    entry.reading && entry.difference !== 0 ? h("span", { class: `says ${clear ? wayOf(q, entry) : "soft"}` }, entry.reading) : null,
  );
}
