// Splits and merges: one latent of an arm whose firings another arm gives to several. The same page, read either way.

import { data } from "../data.js";
import { card, chips, h, latentLink, number, percent } from "../dom.js";

const PAGE = 50;
// the words of what the store says of all splits of a pair
const WORDS = {
  n_parents: "parents scored",
  too_rare: "parents too rare to score",
  "n_above_0.1": "with a score above 0.1",
  "n_above_0.25": "with a score above 0.25",
  "share_above_0.1": "share above 0.1",
  "share_above_0.25": "share above 0.25",
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
  const loaded = { from: 0, rows: answer.rows, total: answer.total ?? null };
  const wanted = { text: "", label: "", score: 0 };
  const count = h("span", { class: "note", role: "status" });
  const more = h("button", { type: "button", onclick: next }, "More");

  function show() {
    const kept = loaded.rows.filter((row) => matches(row, wanted));
    list.replaceChildren(...kept.map(item));
    const all = loaded.total ?? loaded.rows.length;
    const best = answer.found > all ? `, the best of ${number(answer.found)}` : "";
    count.textContent = `${number(kept.length)} shown, ${number(loaded.rows.length)} of ${number(all)} loaded${best}`;
    more.hidden = loaded.total !== null ? loaded.rows.length >= loaded.total : answer.rows.length < PAGE;
    if (!kept.length) list.append(h("li", { class: "empty" }, `no ${kind} here`));
  }

  async function next() {
    more.disabled = true;
    const added = await data.splits({ ...state, offset: loaded.rows.length, limit: PAGE }).catch(() => ({ rows: [] }));
    loaded.rows = [...loaded.rows, ...added.rows];
    if (!added.rows.length) loaded.total = loaded.rows.length;
    more.disabled = false;
    show();
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
    oninput: () => {
      wanted.text = text.value.trim().toLowerCase();
      show();
    },
  });
  const score = h("input", {
    type: "number",
    step: "any",
    min: "0",
    max: "1",
    placeholder: "0",
    oninput: () => {
      wanted.score = Number(score.value) || 0;
      show();
    },
  });
  const label = h(
    "select",
    {
      onchange: () => {
        wanted.label = label.value;
        show();
      },
    },
    ["", "sense split", "duplicate", "absorption", "junk", "unsure"].map((value) => h("option", { value }, value || "any")),
  );
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
            ? "latents of the trained arm whose firings solo gives to several latents"
            : "latents of solo whose firings the other arm gives to several latents",
        ),
      ),
      h(
        "div",
        { class: "toolbar" },
        h("label", {}, "Pair", pick),
        h("label", { class: "grow" }, "Filter", text),
        h("label", {}, "Score from", score),
        h("label", {}, "Label", label),
        count,
      ),
    ),
    baseRate(answer, kind, base(answer.pair)),
    h("section", { class: "card" }, list, more),
  );
  return {
    title: kind === "merges" ? "Merges" : "Splits",
    menu: kind,
    node,
    clear: () => {
      text.value = score.value = label.value = "";
      Object.assign(wanted, { text: "", label: "", score: 0 });
      show();
    },
  };
}

function matches(row, { text, label, score }) {
  if (label && row.label !== label) return false;
  if ((row.score ?? 0) < score) return false;
  if (!text) return true;
  return [row.parent, ...row.children].some(
    (side) => String(side.latent) === text || (side.top_tokens || []).some((token) => token.trim().toLowerCase().startsWith(text)),
  );
}

/** What splits there are without any penalty: solo against solo's next seed. */
function baseRate(answer, kind, isBase) {
  const told = Object.entries(answer.base_rate || {}).filter(([, value]) => typeof value === "number");
  const here = answer.summary || {};
  if (!told.length) return h("p", { class: "note" }, "No base rate: it needs two seeds of solo.");
  if (isBase) return h("p", { class: "note" }, "Two seeds of solo: what is found here is found without any penalty.");
  return card(
    "Beside the base rate",
    `${answer.pair}, against ${answer.base_rate.pair || "two seeds of solo"}, where there is no penalty: only more ${kind} than there speak for it`,
    h(
      "dl",
      { class: "tiles" },
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

function item(row) {
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
      h("a", { href: `#/split/${encodeURIComponent(row.id)}` }, "open"),
      latentLink(row.parent.sae, row.parent.latent),
      chips(row.parent.top_tokens),
      row.label ? h("span", { class: "tag" }, row.label) : null,
      h(
        "span",
        { class: "numbers" },
        `score ${number(row.score)} · covered ${percent(row.coverage)} · overlap ${percent(row.overlap)} · ${number(row.firings)} firings`,
      ),
    ),
    bar,
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
          h("span", { class: "soft" }, `${percent(child.share)} of the firings · phi ${number(child.phi)}`),
        ),
      ),
    ),
  );
}
