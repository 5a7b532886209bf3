// Splits and merges: one latent of an arm whose firings another arm gives to several. The same page, read either way.

import { data } from "../data.js";
import { already, livesOn } from "../counterparts.js";
import { card, chips, fixed, h, latentLink, number, percent, saeName } from "../dom.js";

const PAGE = 50;
// the words of what the store says of all splits of a pair
const WORDS = {
  n_parents: "parents with a score",
  too_rare: "parents too rare to score",
  "n_above_0.1": "with a score above 0.1",
  "n_above_0.25": "with a score above 0.25",
  n_kept: "not counted: in both SAEs",
  mean_score: "mean score",
  mean_top: "mean of the best 100",
};
const LETTERS = "ABCDEFGH";

export async function page({ name, parts, query }) {
  const kind = name === "merges" ? "merges" : "splits";
  const state = { pair: query.get("pair") || parts[0] || "", kind };
  // a pair of two seeds of solo: the base rate's own splits
  const base = (pair) => (answer.base_pairs || []).includes(pair);
  const answer = await data.splits({ ...state, offset: 0, limit: PAGE });
  const list = h("ol", { class: "list", "aria-label": kind === "merges" ? "Merges" : "Splits" });
  const loaded = { rows: answer.rows, total: answer.total, hidden: answer.n_kept };
  const wanted = { search: "", min_score: "", label: "", kept: "" };
  const count = h("span", { class: "note", role: "status" });
  const more = h("button", { type: "button", onclick: next }, "More");
  let turn = 0,
    waiting = 0;

  function show() {
    list.replaceChildren(...loaded.rows.map((row) => item(row, kind === "merges")));
    const best = answer.found > answer.total ? `, of the best ${number(answer.total)} of ${number(answer.found)}` : "";
    const hidden = loaded.hidden && !wanted.kept ? `, ${number(loaded.hidden)} hidden, as their latents are in both SAEs` : "";
    count.textContent = `${number(loaded.rows.length)} of ${number(loaded.total)} shown${best}${hidden}`;
    more.hidden = loaded.rows.length >= loaded.total;
    if (!loaded.rows.length) list.append(h("li", { class: "empty" }, `no ${kind} here`));
  }

  async function next() {
    const mine = turn;
    more.disabled = true;
    const added = await data
      .splits({ ...state, ...wanted, offset: loaded.rows.length, limit: PAGE })
      .catch((error) => ({ error: error.message }));
    more.disabled = false;
    if (mine !== turn) return;
    if (added.error) count.textContent = added.error;
    else {
      loaded.rows = [...loaded.rows, ...added.rows];
      show();
    }
  }

  /** Other filters: asked for over all of the pair, shown from the best. */
  async function change(values) {
    Object.assign(wanted, values);
    const mine = ++turn;
    const found = await data.splits({ ...state, ...wanted, offset: 0, limit: PAGE }).catch((error) => ({ error: error.message }));
    if (mine !== turn) return;
    if (found.error) count.textContent = found.error;
    else {
      Object.assign(loaded, { rows: found.rows, total: found.total, hidden: found.n_kept });
      show();
    }
  }

  function soon(values) {
    clearTimeout(waiting);
    waiting = setTimeout(() => change(values()), 180);
  }

  const pick = h(
    "select",
    {
      onchange: () => {
        location.hash = `#/${kind}?${new URLSearchParams({ pair: pick.value })}`;
      },
    },
    [...(answer.pairs || []), ...(answer.base_pairs || [])].map((pair) =>
      h("option", { value: pair, selected: pair === answer.pair }, pair + (base(pair) ? " (base rate)" : "")),
    ),
  );
  const text = h("input", {
    type: "search",
    "data-search": true,
    placeholder: "a token or a latent's number",
    "aria-label": "Filter by token or latent",
    oninput: () => soon(() => ({ search: text.value.trim() })),
  });
  const score = h("input", {
    type: "number",
    step: "any",
    min: "0",
    max: "1",
    placeholder: "0",
    oninput: () => soon(() => ({ min_score: score.value })),
  });
  const label = h(
    "select",
    {
      onchange: () => change({ label: label.value }),
    },
    ["", "sense split", "duplicate", "absorption", "junk", "unsure"].map((name) => h("option", { value: name }, name || "any")),
  );
  const kept = h("input", {
    type: "checkbox",
    onchange: () => change({ kept: kept.checked ? "1" : "" }),
  });
  show();
  const node = h(
    "div",
    { class: "page" },
    h(
      "section",
      { class: "card" },
      h(
        "div",
        { class: "card-head" },
        h("h1", {}, kind === "merges" ? "Merges" : "Splits"),
        h(
          "p",
          { class: "note" },
          kind === "merges"
            ? "latents of the other arm whose firings solo divides among several latents"
            : "latents of solo whose firings the other arm divides among several latents",
        ),
      ),
      h(
        "div",
        { class: "toolbar" },
        h("label", {}, "Pair", pick),
        h("label", { class: "grow" }, "Filter", text),
        h("label", {}, "Score from", score),
        h("label", {}, "Label", label),
        h(
          "label",
          { class: "check", title: "candidates whose parent or whose children are in both SAEs (phi above 0.8)" },
          kept,
          h("span", {}, kind === "merges" ? "also those that are no merge" : "also those that are no split"),
        ),
        count,
      ),
    ),
    baseRate(answer, kind, base(answer.pair)),
    h(
      "section",
      { class: "card" },
      h(
        "details",
        {},
        h("summary", {}, kind === "merges" ? "How a merge is scored" : "How a split is scored"),
        h("p", { class: "note" }, kind === "merges"
          ? "In a merge the parent is new and the children are gone. “Nearest other” names the latent of the other SAE that fires most like the parent, apart from the children, or most like a child, apart from the parent. The higher its phi, the lower the score."
          : "In a split the parent is gone and the children are new. “Nearest other” names the latent of the other SAE that fires most like the parent, apart from the children, or most like a child, apart from the parent. The higher its phi, the lower the score."),
        h("p", { class: "note" }, "The children are chosen on one half of the held-out documents. Score, covered, overlap, shares, firings and the phi of the nearest other latents are measured on the other half. The phi of a child with its parent is measured on the half on which the child was chosen, so it is too high."),
      ),
      list,
      more,
    ),
  );
  return {
    title: kind === "merges" ? "Merges" : "Splits",
    menu: kind,
    node,
    clear: () => {
      text.value = score.value = label.value = "";
      kept.checked = false;
      clearTimeout(waiting);
      change({ search: "", label: "", min_score: "", kept: "" });
    },
  };
}

/** What splits there are without any penalty: solo against solo's next seed. */
function baseRate(answer, kind, isBase) {
  // the shares say what the counts say
  const told = Object.entries(answer.base_rate || {}).filter(([key, value]) => typeof value === "number" && !key.startsWith("share_"));
  const here = answer.summary || {};
  if (answer.same_seed)
    return h(
      "p",
      { class: "note" },
      "Two SAEs of one seed share initial weights and batches, so most latents of one are also latents of the other. These candidates are examples to look at. A base rate and a comparison need two seeds of each arm.",
    );
  if (!told.length) return h("p", { class: "note" }, "There is no base rate, as it needs two seeds of solo.");
  if (isBase) return h("p", { class: "note" }, "These are two seeds of solo, so the splits here arise without any penalty.");
  const fewer = fewerThan(here, answer.base_rate);
  return card(
    "Compared with the base rate",
    `${answer.pair}, against ${answer.base_rate.pair || "two seeds of solo"}, which have no penalty. Only more ${kind} than these are evidence for the penalty. The base rate is one pair of SAEs, so it has no interval.`,
    fewer && h("p", {}, h("b", {}, `No evidence that the penalty ${kind === "merges" ? "merges" : "splits"} latents: `), fewer),
    h(
      "dl",
      { class: "tiles facts" },
      told.map(([key, value]) =>
        h(
          "div",
          {},
          h("dt", {}, WORDS[key] || key.replaceAll("_", " ")),
          h(
            "dd",
            {},
            typeof here[key] === "number" ? [number(here[key]), h("span", { class: "soft" }, ` against ${number(value)}`)] : number(value),
          ),
        ),
      ),
    ),
  );
}

/** In words that there are no more than between two seeds of solo; null where there are more. */
function fewerThan(here, base) {
  for (const [key, told] of [
    ["share_above_0.1", (value) => `${percent(value)} of the parents`],
    ["n_above_0.1", (value) => `${number(value)} parents`],
  ]) {
    const [mine, theirs] = [here[key], base[key]];
    if (typeof mine !== "number" || typeof theirs !== "number") continue;
    return mine > theirs ? null : `${told(mine)} score above 0.1, and ${told(theirs)} between two seeds of solo.`;
  }
  return null;
}

function item(row, merge) {
  const bar = h(
    "div",
    { class: "share", "aria-hidden": "true" },
    row.children.map((child, i) => {
      const part = h("i", { class: `c${i % 5}` });
      part.style.width = `${100 * Math.max(0, Math.min(1, child.share ?? 0))}%`;
      return part;
    }),
  );
  return h(
    "li",
    { class: "item", tabindex: "-1" },
    h(
      "div",
      { class: "split-line" },
      h("a", { href: `#/split/${encodeURIComponent(row.id)}`, class: "whole latent-link" }, saeName(row.parent.sae), " ", h("span", { class: "id" }, String(row.parent.latent))),
      chips(row.parent.top_tokens),
      row.label ? h("span", { class: "tag" }, row.label) : null,
      h(
        "span",
        { class: "numbers" },
        `score ${fixed(row.score)} · covered ${percent(row.coverage)} · overlap ${percent(row.overlap)} · ${number(row.firings)} firings`,
      ),
    ),
    bar,
    h("div", {}, livesOn(row.parent, merge)),
    h(
      "div",
      { class: "children" },
      row.children.map((child, i) =>
        h(
          "div",
          {},
          h("span", { class: `swatch c${i % 5}`, "aria-hidden": "true" }, LETTERS[i]),
          latentLink(child.sae, child.latent),
          chips(child.top_tokens),
          h("span", { class: "soft" }, `fires alone on ${percent(child.share)} of the parent's firings · phi ${fixed(child.phi)}`),
          already(child, merge),
        ),
      ),
    ),
  );
}
