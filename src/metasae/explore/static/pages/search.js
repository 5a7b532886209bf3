// Search over every SAE: words of explanations, and tokens. One group an SAE, the most specific latents first.

import { data } from "../data.js";
import { chip, chips, fixed, h, latentLink, number, saeName, term } from "../dom.js";

const MEANING =
  "How specific the latent is to what was searched for. By a token: F1 of its firing as a detector of the token, times the share of the token's letters that were typed. By an explanation: the share of its words that were typed.";

export async function page({ parts }) {
  const text = parts.join("/").trim();
  const { groups } = text ? await data.search(text) : { groups: [] };
  document.getElementById("search").value = text;
  const many = groups.reduce((sum, { total }) => sum + total, 0);
  const node = h(
    "div",
    { class: "page" },
    h(
      "section",
      { class: "card" },
      h("div", { class: "card-head" }, h("h1", {}, "Search: ", chip(text)), h("p", { class: "note" }, `${number(many)} latents in ${groups.length} SAE${groups.length === 1 ? "" : "s"}`)),
      groups.length
        ? h("p", { class: "note" }, "The most specific latents come first; the number on the right is how specific: ", term("what it means", MEANING))
        : h("p", { class: "empty" }, "No explanation contains these words, and no latent has a top token that begins like this."),
    ),
    groups.map((group) => found(group, text)),
  );
  return { title: `Search: ${text}`, node };
}

function found({ sae, total, rows }, text) {
  const line = (row) =>
    h(
      "li",
      { class: "item split-line", tabindex: "-1" },
      latentLink(sae, row.latent, false, true),
      chips(row.top_tokens),
      h("bdi", {}, row.explanation || ""),
      h("span", { class: "numbers" }, row.where === "explanation" ? "by its explanation" : ["by ", chip(row.text, "token", true)], ` · ${fixed(row.specific)}`),
    );
  const all = `#/latents/${encodeURIComponent(sae)}?${new URLSearchParams({ search: text })}`;
  return h(
    "section",
    { class: "card" },
    h(
      "div",
      { class: "card-head" },
      h("h2", {}, saeName(sae)),
      h("p", { class: "note" }, total > rows.length ? [`the first ${number(rows.length)} of `, h("a", { href: all }, `${number(total)} latents`)] : `${number(total)} latent${total === 1 ? "" : "s"}`),
    ),
    h("ol", { class: "list", "aria-label": `Latents of ${sae}` }, rows.map(line)),
  );
}
