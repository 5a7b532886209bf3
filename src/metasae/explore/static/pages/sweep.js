// Sweep: the cells in the paper's form, the objectives against each other, and the recipe to confirm.

import { changeText, cellPath, Cells, command, settingText, valueText } from "../cells.js";
import { draw, redraw } from "../charts.js";
import { Coordinates } from "../coordinates.js";
import { data } from "../data.js";
import { card, h, number, table } from "../dom.js";
import { doses, pareto } from "../sweepfigures.js";

export async function page({ query }) {
  const sweep = { ...(await data.sweep()) };
  sweep.many = conditions(sweep);
  const state = { sort: query.get("sort") || "cell", desc: query.get("desc") || "0" };
  const cells = new Cells(sweep, state, keep);
  const lines = parallel(sweep, query, brushed);
  const keptNow = () => cells.kept;

  function keep() {
    const given = Object.entries(state).filter(([key, value]) => !(key === "sort" && value === "cell") && !(key === "desc" && value === "0"));
    if (lines?.shade.value && lines.shade.value !== sweep.objectives[0]) given.push(["colour", lines.shade.value]);
    given.push(...(lines?.drawn.told() || []));
    const told = new URLSearchParams(given).toString();
    history.replaceState(null, "", `#/sweep${told ? `?${told}` : ""}`);
  }

  function brushed(kept) {
    // cells that failed have no line; without a brush they are in the table all the same
    cells.filter(lines.drawn.ranges.size ? kept : null);
    all.hidden = !lines.drawn.ranges.size;
    for (const place of node.querySelectorAll(".chart")) redraw(place);
    keep();
  }

  const all = h("button", { type: "button", hidden: true, onclick: () => lines.drawn.clear() }, "show all");
  if (lines?.drawn.ranges.size) {
    cells.filter(lines.drawn.kept());
    all.hidden = false;
  }
  const node = h(
    "div",
    { class: "page" },
    facts(sweep),
    card(
      "Cells",
      `change of ${sweep.subject} against ${sweep.baseline} with its 95% interval; bold: clear after Holm's correction within the cell; ${sweep.many}`,
      h("div", { class: "title" }, cells.count, all),
      cells.node,
      h(
        "p",
        { class: "note" },
        "Each interval covers its cell alone. Among many cells some look clear by chance, so choose a cell here and confirm it on new seeds. ",
        "Front: the cells for which no other cell is at least as good in every objective and better in one, by the means over seeds.",
      ),
    ),
    lines?.card,
    h("div", { class: "columns even" }, pareto(sweep, keptNow), doses(sweep, keptNow)),
    equalFvu(sweep),
    failed(sweep),
    confirm(sweep),
    h("p", { class: "note" }, spent(sweep.time)),
  );
  return {
    title: sweep.run,
    node,
    ready: () => {
      lines?.drawn.show();
      draw(node);
    },
    clear: () => lines?.drawn.clear(),
    close: () => lines?.drawn.close(),
  };
}

export function conditions(sweep) {
  const seeds = `${sweep.seeds.length} seed${sweep.seeds.length === 1 ? "" : "s"}`;
  return `${number(sweep.tokens)} evaluation tokens, ${seeds}`;
}

function facts(sweep) {
  const states = ["done", "stopped", "failed"].map((state) => [state, sweep.cells.filter((cell) => cell.state === state).length]);
  const told = [
    ["cells", states.filter(([, count]) => count).map(([state, count]) => `${count} ${state}`).join(", ") || "none"],
    ["arms", [...sweep.arms, ...(sweep.arms.includes(sweep.subject) ? [] : [sweep.subject])].join(", ")],
    ["compared", `${sweep.subject} against ${sweep.baseline}`],
    ["seeds", sweep.seeds.join(", ")],
    ["latents", number(sweep.latents)],
    ["training tokens", number(sweep.train_tokens)],
    ["evaluation tokens", number(sweep.tokens)],
    ["model", sweep.model || "–"],
    ["hook point", sweep.hook || "–"],
    ["objectives", sweep.objectives.map((key) => sweep.quantities.find((quantity) => quantity.key === key)?.label || key).join(", ")],
  ];
  return h(
    "section",
    { class: "card" },
    h("div", { class: "card-head" }, h("h1", {}, sweep.title), h("p", { class: "note" }, `values of the recipe, except where a cell sets its own; varied: ${sweep.settings.join(", ") || "nothing"}`)),
    h(
      "dl",
      { class: "tiles facts" },
      told.map(([term, text]) => h("div", {}, h("dt", {}, term), h("dd", {}, text))),
    ),
  );
}

/** {card, drawn, shade}, or null where no cell is done. */
function parallel(sweep, query, brushed) {
  const { cells: names, dimensions } = sweep.parallel;
  if (!names.length || !dimensions.length) return null;
  const drawn = new Coordinates(names, dimensions, brushed);
  const objectives = dimensions.filter(({ key }) => sweep.objectives.includes(key));
  const bar = h("span", { class: "scale", "aria-hidden": "true" });
  const ends = [h("span", {}), h("span", {})];
  const shade = h(
    "select",
    {
      "aria-label": "Colour of the lines",
      onchange: () => {
        paint();
        drawn.draw();
        brushed(drawn.kept());
      },
    },
    objectives.map(({ key, label }) => h("option", { value: key, selected: key === query.get("colour") }, label)),
  );
  function paint() {
    const values = objectives.find(({ key }) => key === shade.value)?.values || [];
    const known = values.filter((value) => value !== null);
    const low = Math.min(...known),
      high = Math.max(...known);
    drawn.shade = (i) => ((values[i] ?? null) === null ? null : high > low ? (values[i] - low) / (high - low) : 0.5);
    ends[0].textContent = number(known.length ? low : null);
    ends[1].textContent = number(known.length ? high : null);
  }
  paint();
  drawn.tell(query);
  const picked = card(
    "Settings and objectives",
    `a line per cell, means over seeds; drag along an axis to keep a part of it, click it to keep all; the table and figures follow; ${sweep.many}`,
    h("div", { class: "title" }, h("label", { class: "note" }, "colour ", shade), h("span", { class: "note legend-scale" }, ends[0], bar, ends[1])),
    drawn.node,
  );
  return { card: picked, drawn, shade };
}

function equalFvu(sweep) {
  const found = sweep.equal_fvu;
  if (!found) return null;
  const known = Object.fromEntries(sweep.quantities.map((quantity) => [quantity.key, quantity]));
  const shown = [...sweep.columns, "fidelity.l0"].filter(
    (key, i, every) => key !== "fidelity.fvu" && key in known && every.indexOf(key) === i && Object.values(found.kinds).some((rows) => rows[key]),
  );
  const told = (entry) => {
    if (!entry || entry.difference === null) return h("span", { class: "soft" }, "FVU not reached");
    const error = entry.interpolation_error === null ? "" : ` ± ${number(entry.interpolation_error, 2)}`;
    return [changeText(entry), h("span", { class: "soft", title: "largest error of the interpolation; seeds" }, `${error} · ${entry.n_seeds}`)];
  };
  const columns = [{ label: "kind", text: true }, { label: "k trained" }, ...shown.map((key) => ({ label: known[key].label, title: known[key].meaning }))];
  const rows = Object.entries(found.kinds).map(([kind, entries]) => [kind, found.k[kind].join(", "), ...shown.map((key) => told(entries[key]))]);
  const missing = Object.entries(found.not_done).map(([kind, why]) => h("p", { class: "note" }, `${kind || "a cell"} is not done: ${why}`));
  const sign = found.baseline === "curve" ? "target − curve" : "curve − target";
  return card(
    `At the FVU of ${found.target.kind} with k = ${found.target.k}`,
    `read off each kind's curve over k, linear in ln FVU, seed by seed; ${sign}; beside each: the largest error of the interpolation, and the seeds that reach this FVU; ${sweep.many}`,
    table(columns, rows, { label: "Kinds at equal FVU", empty: "no kind is done yet" }),
    missing,
  );
}

function failed(sweep) {
  const lost = sweep.cells.filter((cell) => cell.state !== "done");
  if (!lost.length) return null;
  const columns = ["cell", "setting", "state", "why"].map((label) => ({ label, text: true }));
  const rows = lost.map((cell) => [h("a", { href: cellPath(cell.name), class: "latent-link whole" }, h("span", { class: "id" }, cell.name)), settingText(cell), cell.state, cell.why || "–"]);
  return card("Failed and stopped", "not on the front; the same sweep command tries the failed cells again", table(columns, rows, { label: "Cells that failed or were stopped" }));
}

function confirm(sweep) {
  const best = sweep.cells.find((cell) => cell.best);
  if (!best) return null;
  const told = sweep.confirm;
  return card(
    "Where to look first",
    "the cell on the front that is nearest to the ideal, each objective scaled to the front's range; a suggestion, not a finding",
    h("p", {}, h("a", { href: cellPath(best.name), class: "latent-link" }, h("span", { class: "id" }, best.name)), ` ${settingText(best)}`),
    told?.cell === best.name
      ? [h("p", { class: "soft" }, `This confirms it on seeds ${told.seeds.map(valueText).join(", ")}. ${told.note}`), command(told.command)]
      : null,
  );
}

function spent(time) {
  const minutes = (seconds) => (seconds < 100 ? `${Math.round(seconds)} s` : `${number(seconds / 60)} min`);
  if (!time?.steps) return "";
  const memory = (time.peak_memory_gib ?? null) === null ? "" : `, at most ${number(time.peak_memory_gib)} GiB of memory each`;
  return `${time.saes} SAEs by ${time.workers} worker${time.workers === 1 ? "" : "s"}${memory}: ${minutes(time.steps)} of training steps, ${minutes(time.measure)} of measuring, ${minutes(time.whole)} in all.`;
}
