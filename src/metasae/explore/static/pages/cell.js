// Cell: one setting of a sweep, all its measures against the baseline, and the way to its latents.

import { command, marks, settingText, valueText } from "../cells.js";
import { data, Missing, STATIC } from "../data.js";
import { h, number } from "../dom.js";
import { measures } from "../measures.js";

export async function page({ parts: [name] }) {
  const sweep = await data.sweep();
  const at = sweep.cells.findIndex((cell) => cell.name === name);
  if (at < 0) throw new Missing(`no cell '${name ?? ""}' in this sweep`);
  const cell = sweep.cells[at];
  const seeds = `${cell.seeds.length} seed${cell.seeds.length === 1 ? "" : "s"}`;
  const many = `${number(sweep.tokens)} evaluation tokens, ${seeds}`;
  const go = (by) => {
    const next = sweep.cells[at + by];
    if (next) location.hash = `#/cell/${encodeURIComponent(next.name)}`;
  };
  const node = h(
    "div",
    { class: "page" },
    h(
      "section",
      { class: "card" },
      h("div", { class: "title" }, h("h1", {}, settingText(cell)), marks(cell)),
      h("p", { class: "note" }, `cell ${cell.name}, ${at + 1} of ${sweep.cells.length}; ${many}`),
      cell.why ? h("p", {}, `${cell.state}: ${cell.why}`) : null,
      h(
        "dl",
        { class: "tiles facts" },
        sweep.settings.map((key) => h("div", {}, h("dt", {}, key), h("dd", {}, valueText(cell.setting[key])))),
        cell.kappa === null ? null : h("div", {}, h("dt", {}, "kappa"), h("dd", {}, number(cell.kappa))),
      ),
    ),
    Object.keys(cell.changes).length ? measures(asRun(sweep, cell), many) : null,
    latents(cell),
  );
  return { title: `${cell.name} of ${sweep.run}`, node, previous: () => go(-1), next: () => go(1) };
}

/** The cell as the table of measures reads a run. */
function asRun(sweep, cell) {
  const means = (side) => Object.fromEntries(Object.entries(cell.changes).map(([key, entry]) => [key, entry[side]]));
  return {
    quantities: sweep.quantities,
    arms: { solo: { seeds: cell.seeds, means: means("b") }, [sweep.subject]: { seeds: cell.seeds, means: means("a") } },
    pairs: { [`${sweep.subject} vs solo`]: cell.changes },
  };
}

function latents(cell) {
  if (!cell.command) return h("p", { class: "note" }, "No SAE of this cell is trained, so there are no latents to show.");
  const told = cell.firings
    ? "Its own pages show the latents and what they fire on."
    : "This cell keeps no firings, which is the default of sweeps (--set measure.keep_firings=true keeps them). Its pages therefore show only what the weights give: neighbours by cosine and training curves, but no windows of text.";
  return h(
    "section",
    { class: "card" },
    h("div", { class: "card-head" }, h("h2", {}, "Its latents")),
    h("p", {}, told),
    STATIC
      ? h("p", { class: "note" }, "They are not part of this static copy. This command opens them:")
      : h("p", {}, h("a", { href: `cell/${encodeURIComponent(cell.name)}/` }, "Open them"), " (the first time takes a while, as the pages are built then; the terminal shows the progress), or open them on their own:"),
    command(cell.command),
  );
}
