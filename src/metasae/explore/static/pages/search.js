// Search over every SAE: words of explanations, and tokens.

import { data } from "../data.js";
import { chip, chips, h, latentLink, number } from "../dom.js";

const MOST = 100;

export async function page({ parts }) {
  const text = parts.join("/").trim();
  const { rows } = text ? await data.search(text) : { rows: [] };
  const found = [...new Map(rows.map((row) => [`${row.sae}:${row.latent}`, row])).values()];
  const known = await briefsOf(found);
  document.getElementById("search").value = text;
  const line = (row) => {
    const brief = known[row.sae]?.[row.latent] || {};
    return h(
      "li",
      { class: "item split-line", tabindex: "-1" },
      latentLink(row.sae, row.latent),
      chips(brief.top_tokens),
      h("bdi", {}, brief.explanation || (row.where === "explanation" ? row.text : "")),
      h("span", { class: "numbers" }, row.where === "explanation" ? "by its explanation" : ["by ", chip(row.text, "token", true)]),
    );
  };
  const node = h(
    "div",
    { class: "page" },
    h(
      "section",
      { class: "card" },
      h(
        "div",
        { class: "card-head" },
        h("h1", {}, "Search: ", chip(text)),
        h("p", { class: "note" }, `${number(found.length)} latents${rows.length >= MOST ? ", the first found" : ""}`),
      ),
      found.length
        ? h("ol", { class: "list", "aria-label": "Found latents" }, found.map(line))
        : h("p", { class: "empty" }, "No explanation has these words, and no latent's top token begins so."),
    ),
  );
  return { title: `Search: ${text}`, node };
}

/** What the latents are known by: SAE -> latent -> {top_tokens, explanation}. */
async function briefsOf(rows) {
  const saes = [...new Set(rows.map(({ sae }) => sae))];
  return Object.fromEntries(
    await Promise.all(
      saes.map(async (sae) => [
        sae,
        await data
          .briefs(
            sae,
            rows.filter((row) => row.sae === sae).map(({ latent }) => latent),
          )
          .catch(() => ({})),
      ]),
    ),
  );
}
