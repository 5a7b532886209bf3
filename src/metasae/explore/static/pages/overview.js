// Overview: one sentence, three tiles, what is worth a look; everything else is folded.

import { draw } from "../charts.js";
import { data, STATIC } from "../data.js";
import { card, chips, fixed, h, number, saeName, table, term } from "../dom.js";
import { pareto, phi, rates, scores, training } from "../figures.js";
import { measures } from "../measures.js";
import { presetsOf } from "../presets.js";
import { tiles } from "../tiles.js";

export async function page() {
  const run = await data.overview();
  const look = await worthALook(run);
  const seeds = Math.max(0, ...Object.values(run.seeds || {}).map((measured) => measured.length));
  const many = `${number(run.tokens)} held-out tokens, ${seeds} seed${seeds === 1 ? "" : "s"} measured`;
  const node = h(
    "div",
    { class: "page" },
    h(
      "section",
      { class: "card verdict" },
      h("div", { class: "card-head" }, h("h1", {}, run.run), h("p", { class: "note" }, many)),
      h("p", { class: "lead" }, run.headline || "Nothing is compared yet."),
      run.missing?.length ? h("p", { class: "note" }, `Not measured yet: ${run.missing.join(", ")}.`) : null,
    ),
    tiles(run),
    look,
    folded("The full verdict", () => verdict(run)),
    folded("All measures", () => measures(run, many)),
    folded("Figures", () => [h("div", { class: "columns even" }, pareto(run, many), phi(run, many), rates(run, many), training(run)), scores(run)]),
    folded("The SAEs of this run", () => saes(run, many)),
    h(
      "p",
      { class: "note" },
      STATIC
        ? "This is a static copy. Labels, steering and “Try a text” need the explorer: metasae explore RUN."
        : h("a", { href: "api/labels", download: "labels.json" }, "Download your labels (JSON)"),
    ),
  );
  return { title: run.run, node };
}

/** A heading that opens. What is in it is made when it is first opened, as figures need their place on the page. */
function folded(title, make) {
  const body = h("div", { class: "stack" });
  const node = h("details", { class: "folded" }, h("summary", {}, h("h2", {}, title)), body);
  node.addEventListener("toggle", () => {
    if (!node.open || body.childNodes.length) return;
    body.append(...[make()].flat(Infinity).filter(Boolean));
    draw(body);
  });
  return node;
}

function verdict(run) {
  const lines = run.verdict?.length ? run.verdict : [{ text: "Nothing is compared yet." }];
  return h("section", { class: "card" }, lines.map(({ text }) => h("p", {}, text)));
}

/** The best split, and the lists of latents that a reader opens first. */
async function worthALook(run) {
  if (!run.saes.length) return null;
  const answer = await data.splits({ kind: "splits", limit: 1 }).catch(() => ({ rows: [] }));
  const [split] = answer.rows;
  const lists = presetsOf(run).filter(({ of }) => of);
  const item = (link, why) => h("li", { class: "item", tabindex: "-1" }, link, h("span", { class: "soft" }, " – ", why));
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "Worth a look"),
    h(
      "ul",
      { class: "list" },
      split
        ? item(
            h("a", { class: "whole", href: `#/split/${encodeURIComponent(split.id)}` }, `The clearest split candidate: ${split.parent.sae} ${split.parent.latent}`),
            [chips(split.parent.top_tokens, 3), ` into ${split.children.length} latents of ${split.children[0].sae}, score ${fixed(split.score)}`],
          )
        : null,
      lists.map(({ key, title, why, of }) => item(h("a", { class: "whole", href: `#/latents/${encodeURIComponent(of)}?preset=${key}` }, `${title}: latents of ${of}`), why)),
      STATIC ? null : item(h("a", { class: "whole", href: "#/try" }, "Try a text of your own"), "see which latents fire in each arm"),
    ),
  );
}

function saes(run, many) {
  const columns = [
    { label: "SAE", text: true },
    { label: "latents" },
    { label: "live" },
    { label: term("L0", "number of latents that fire at a token, mean over tokens") },
    { label: term("FVU", "squared error of the reconstruction over the variance of the activations") },
    { label: "firings" },
    { label: "model", text: true },
    { label: "hook point", text: true },
  ];
  const rows = run.saes.map((sae) => [
    h("a", { href: `#/latents/${encodeURIComponent(sae.name)}`, class: "latent-link whole" }, saeName(sae.name)),
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
