// Overview: the verdict, every measure with its interval, the run's figures and its SAEs.

import { draw } from "../charts.js";
import { data, STATIC } from "../data.js";
import { card, h, number, saeName, table } from "../dom.js";
import { pareto, phi, rates, scores, training } from "../figures.js";
import { measures } from "../measures.js";

export async function page() {
  const run = await data.overview();
  const seeds = new Set(run.saes.map((sae) => sae.seed)).size;
  const many = `${number(run.tokens)} held-out tokens, ${seeds} seed${seeds === 1 ? "" : "s"}`;
  const node = h(
    "div",
    { class: "page" },
    verdict(run, many),
    measures(run, many),
    h("div", { class: "columns even" }, pareto(run, many), phi(run, many), rates(run, many), training(run)),
    scores(run),
    saes(run, many),
    h(
      "p",
      { class: "note" },
      STATIC
        ? "A static copy: labels and “try a text” need the explorer itself."
        : h("a", { href: "api/labels", download: "labels.json" }, "Download the labels given here"),
    ),
  );
  return { title: run.run, node, ready: () => draw(node) };
}

/** Whether training was long enough, then what known features say, larger; the rest below. */
function verdict(run, many) {
  const lines = Array.isArray(run.verdict) && run.verdict.length ? run.verdict : [{ kind: "trained", text: "Nothing is compared yet." }];
  return h(
    "section",
    { class: "card verdict" },
    h("div", { class: "card-head" }, h("h1", {}, run.run), h("p", { class: "note" }, many)),
    ...lines.map(({ kind, text }) => h("p", { class: kind === "truth" ? "lead" : "soft" }, text)),
    run.missing?.length ? h("p", { class: "note" }, `Not measured yet: ${run.missing.join(", ")}.`) : null,
  );
}

function saes(run, many) {
  const columns = [
    { label: "SAE", text: true },
    { label: "latents" },
    { label: "live" },
    { label: "L0", title: "latents that fire at a token, on average" },
    { label: "FVU", title: "squared error over the variance of the activations" },
    { label: "firings" },
    { label: "model", text: true },
    { label: "hook point", text: true },
  ];
  const rows = run.saes.map((sae) => [
    h("a", { href: `#/latents/${encodeURIComponent(sae.name)}`, class: "item latent-link" }, saeName(sae.name)),
    number(sae.n),
    number(sae.live),
    number(sae.l0, 4),
    number(sae.fvu, 4),
    sae.has_firings ? "kept" : "–",
    sae.model || "–",
    sae.hook || "–",
  ]);
  return card("SAEs", many, table(columns, rows, { label: "SAEs of the run", empty: "no SAE is measured yet" }));
}
