// One latent: what it fires on, how strongly, beside what, and what it is said to mean.

import { onYourText, steering } from "../asking.js";
import { armColour, chart, draw } from "../charts.js";
import { data, STATIC } from "../data.js";
import { Deciles } from "../deciles.js";
import {
  apart, armClass, armOf, byTokens, card, chip, chips, fixed, h, latentLink, latentPath, number, percent, sameAs, saeName, shown, table, term, valueOf,
} from "../dom.js";
import { judgesSay } from "../figures.js";
import { labelButtons } from "../labels.js";
import { matches, meta, neighbours } from "../neighbours.js";

const TOKENS = 14;
const LABELS = ["sense split", "duplicate", "absorption", "junk", "keep", "unsure"];

export async function page({ parts }) {
  const [sae, id] = parts;
  if (!sae || !/^\d+$/.test(id || "")) throw new Error("a latent's address is #/latent/SAE/NUMBER");
  const [run, latent] = await Promise.all([data.overview(), data.latent(sae, Number(id))]);
  const about = run.saes.find(({ name }) => name === sae);
  const n = about?.n ?? Infinity;
  const windows = new Deciles(latent);
  const go = (number) => {
    if (number >= 0 && number < n) location.hash = latentPath(sae, number);
  };
  const node = h(
    "div",
    { class: `page ${armClass(armOf(sae))}` },
    head(latent, n, go, run),
    h(
      "div",
      { class: "columns aside" },
      h("div", { class: "stack" }, STATIC ? null : onYourText(latent), run.steers ? steering(latent) : null, windows.node),
      h(
        "div",
        { class: "stack" },
        histogram(latent),
        tokens(latent, windows),
        explained(latent, run),
        logits(latent),
        senses(latent),
        late(matches(latent), neighbours(latent), meta(latent)),
      ),
    ),
  );
  return {
    title: `${sae} latent ${id}`,
    node,
    ready: () => draw(node),
    clear: () => windows.only(null),
    previous: () => go(latent.latent - 1),
    next: () => go(latent.latent + 1),
  };
}

function head(latent, n, go, run) {
  const { scalars } = latent;
  const tokens = scalars.n_tokens ?? run.tokens;
  const other = sameAs(run.saes, latent.sae);
  // each number under the name and with the meaning that it has in the list of latents
  const known = (run.columns || []).filter(({ key }) => typeof scalars[key] === "number");
  const lead = latent.explanation?.text ?? byTokens(latent.tokens);
  return h(
    "section",
    { class: "card" },
    h(
      "div",
      { class: "title" },
      h("h1", {}, saeName(latent.sae), " latent ", h("span", { class: "id" }, String(latent.latent))),
      chips(scalars.top_tokens),
      h("span", { class: "spacer" }),
      h(
        "button",
        { type: "button", onclick: () => go(latent.latent - 1), disabled: latent.latent === 0, "aria-label": "Previous latent" },
        "‹",
      ),
      h(
        "button",
        { type: "button", onclick: () => go(latent.latent + 1), disabled: latent.latent + 1 >= n, "aria-label": "Next latent" },
        "›",
      ),
      h("a", { href: `#/compare/${encodeURIComponent(`${latent.sae}:${latent.latent}`)}`, class: "go" }, "compare with another"),
    ),
    lead ? h("p", { class: "lead" }, lead) : null,
    h(
      "dl",
      { class: "tiles" },
      known.map(({ key, label, meaning }) => h("div", {}, h("dt", {}, term(label, meaning)), h("dd", {}, valueOf(key, scalars[key])))),
    ),
    h(
      "p",
      { class: "note" },
      [
        typeof scalars.rate === "number"
          ? `measured on ${number(tokens)} held-out tokens at the threshold shown`
          : "no firings were kept, so this page shows only what the weights give",
        run.saes.find(({ name }) => name === latent.sae)?.hook,
      ]
        .filter(Boolean)
        .join("; "),
    ),
    other ? h("p", { class: "note" }, "Same weights as ", saeName(other), ", whose firings are kept: see ", latentLink(other, latent.latent), ".") : null,
    labelButtons({ kind: "latent", sae: latent.sae, latent: latent.latent }, latent.scalars.label, latent.labels, LABELS),
    latent.splits?.length
      ? h(
          "p",
          { class: "note" },
          "Split and merge candidates with this latent: ",
          latent.splits.slice(0, 8).map((id, i) => [i ? ", " : "", h("a", { href: `#/split/${encodeURIComponent(id)}` }, splitName(id))]),
        )
      : null,
  );
}

/** Cards that stand below the windows where there is one column. */
function late(...cards) {
  const shown = cards.flat(Infinity).filter(Boolean);
  for (const card of shown) card.classList.add("late");
  return shown;
}

/** solo-s0.377.joint-s1 -> solo-s0 377 in joint-s1. */
function splitName(id) {
  const [, parent, latent, other] = id.match(/^(.+)\.(\d+)\.(.+)$/) || [];
  return other ? `${parent} ${latent} in ${other}` : id;
}

function histogram(latent) {
  const found = latent.histogram;
  if (!found?.counts?.length) return null;
  const place = chart(
    `Histogram of the latent's activations, threshold ${number(found.threshold)}`,
    () => {
      const middles = found.counts.map((_, i) => (found.edges[i] + found.edges[i + 1]) / 2);
      const widths = found.counts.map((_, i) => 0.96 * (found.edges[i + 1] - found.edges[i]));
      const ink = getComputedStyle(document.documentElement).getPropertyValue("--bad").trim();
      const shapes =
        typeof found.threshold === "number"
          ? [
              {
                type: "line",
                x0: found.threshold,
                x1: found.threshold,
                yref: "paper",
                y0: 0,
                y1: 1,
                line: { color: ink, width: 1.5, dash: "dot" },
              },
            ]
          : [];
      return {
        traces: [
          {
            type: "bar",
            x: middles,
            y: found.counts,
            width: widths,
            marker: { color: armColour(armOf(latent.sae)) },
            hovertemplate: "%{x:.3f}<br>%{y:,} tokens<extra></extra>",
          },
        ],
        layout: {
          shapes,
          bargap: 0,
          xaxis: { title: "activation (model units)", range: [Math.min(0, found.edges[0]), found.edges[found.edges.length - 1]] },
          yaxis: { title: "tokens" },
        },
      };
    },
    "small",
  );
  return card("Activations", `number of firings by activation; dotted line: threshold ${number(found.threshold)}`, place);
}

function tokens(latent, windows) {
  if (!latent.tokens?.length) return null;
  const most = Math.max(...latent.tokens.map(({ share }) => share ?? 0), 1e-9);
  // made anew for each of the two tables: a heading is an element, which stands in one place
  const columns = () => [
    { label: "token", text: true },
    { label: "firings" },
    { label: term("share", "share of the latent's firings that are on this token") },
    { label: term("lift", "how many times as often as chance: P(token | the latent fires) / P(token)") },
    { label: term("of all", "share of the token's occurrences on which the latent fires") },
  ];
  const named = apart(latent.tokens.map(({ token }) => token));
  const rows = latent.tokens.map((entry, i) => {
    const share = h("span", {}, percent(entry.share, 2));
    const bar = h("span", { class: "hot", title: entry.token }, share);
    bar.style.setProperty("--p", `${Math.round((55 * (entry.share ?? 0)) / most)}%`);
    const seen = typeof entry.count === "number" && entry.count > 0 ? percent(entry.with / entry.count, 2) : "–";
    return [
      h(
        "button",
        {
          type: "button",
          class: "plain",
          "aria-label": `Only windows that peak on ${shown(entry.token)}`,
          onclick: () => windows.only(entry.token),
        },
        named[i],
      ),
      number(entry.with),
      bar,
      number(entry.lift),
      seen,
    ];
  });
  return card(
    "Tokens",
    "the tokens with the most firings; several unrelated tokens with a high lift suggest several meanings",
    table(columns(), rows.slice(0, TOKENS), { label: "Tokens the latent fires on" }),
    rows.length > TOKENS
      ? h("details", {}, h("summary", {}, `${rows.length - TOKENS} more`), table(columns(), rows.slice(TOKENS), { label: "More tokens" }))
      : null,
  );
}

function explained(latent, run) {
  if (!latent.scores?.length && !latent.replies?.length) return null;
  const columns = [{ label: "score", text: true }, { label: "part", text: true }, { label: "value" }, { label: "chance" }];
  const rows = (latent.scores || []).map(({ score, part, value, chance }) => [
    score,
    part.replaceAll("_", " "),
    fixed(value),
    fixed(chance),
  ]);
  return card(
    "How the explanation scores",
    latent.explanation?.judge ? `by ${latent.explanation.judge}` : null,
    rows.length ? table(columns, rows, { label: "Scores of the explanation" }) : null,
    ...judgesSay((run.judges || []).filter((judge) => judge.sae === latent.sae)),
    latent.replies?.length
      ? h(
          "details",
          {},
          h("summary", {}, `${latent.replies.length} repl${latent.replies.length === 1 ? "y" : "ies"} of the judge`),
          h("ol", { class: "list" }, latent.replies.map(reply)),
        )
      : null,
  );
}

function reply({ score, question, reply }) {
  return h(
    "li",
    { class: "item", tabindex: "-1" },
    h("span", { class: "tag" }, score),
    h("pre", {}, question),
    h("pre", { class: "said" }, reply),
  );
}

function logits(latent) {
  if (!latent.logits) return null;
  const side = (title, entries) =>
    h(
      "div",
      {},
      h("h3", {}, title),
      table(
        [{ label: "token", text: true }, { label: "logit" }],
        apart(entries.map(([token]) => token)).map((named, i) => [named, number(entries[i][1])]),
        { label: title },
      ),
    );
  return card(
    "Logit lens",
    "the decoder row times the unembedding: the tokens whose logits it changes most",
    h("div", { class: "columns" }, side("raises", latent.logits.up || []), side("lowers", latent.logits.down || [])),
  );
}

function senses(latent) {
  if (!latent.senses?.length) return null;
  const rows = latent.senses.map(({ word, sense, recall, share }) => [chip(word), sense, percent(recall), percent(share)]);
  return card(
    "Word senses",
    "recall: share of the sense's sentences in which it fires; share: the part of its firings on the word that has this sense",
    table([{ label: "word", text: true }, { label: "sense", text: true }, { label: "recall" }, { label: "share" }], rows, {
      label: "Word senses",
    }),
  );
}
