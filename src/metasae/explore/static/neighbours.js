// What stands near a latent: by firing and by rows, in its SAE and in others, and what its row is built from.

import { card, chips, fixed, h, latentLink, number, table } from "./dom.js";

const NEAREST = 6;
const KINDS = [
  ["phi", "phi"],
  ["cosine", "decoder cosine"],
  ["encoder_cosine", "encoder cosine"],
];

function neighbourTable(entries, label, other, latent) {
  const told = (entries || []).some((entry) => entry.top_tokens?.length || entry.explanation);
  const rows = (entries || []).map((entry) => [
    latentLink(entry.sae, entry.latent, other, true),
    h("span", {}, chips(entry.top_tokens, 4), entry.explanation ? h("span", { class: "soft" }, " ", entry.explanation) : null),
    h("a", { href: comparison(latent, entry), "aria-label": `compare the two, ${label} ${fixed(entry.value)}` }, fixed(entry.value)),
  ]);
  return table([{ label: "latent", text: true }, { label: told ? "top tokens" : "", text: true }, { label }], rows, { label, empty: "none" });
}

function comparison(a, b) {
  return `#/compare/${encodeURIComponent(`${a.sae}:${a.latent}`)}/${encodeURIComponent(`${b.sae}:${b.latent}`)}`;
}

export function neighbours(latent) {
  const near = latent.neighbours || {};
  const group = (entries, title, other) => {
    const kinds = KINDS.filter(([key]) => entries?.[key]?.length);
    if (!kinds.length) return null;
    return card(
      title,
      "phi: correlation of firing on the held-out tokens; cosines: of decoder rows and of encoder columns",
      kinds.map(([key, label]) => h("div", {}, h("h3", {}, label), neighbourTable(entries[key].slice(0, NEAREST), label, other, latent))),
    );
  };
  return [
    group(near, "Neighbours in this SAE", false),
    Object.entries(near.other || {}).map(([sae, entries]) => group(entries, `Neighbours in ${sae}`, true)),
  ];
}

export function meta(latent) {
  if (!latent.meta?.length) return null;
  return card(
    "Meta-latents that build its decoder row",
    "the weight of each, and the other latents in which it has the largest weights",
    h(
      "ul",
      { class: "list" },
      latent.meta.map((entry) =>
        h(
          "li",
          { class: "item", tabindex: "-1" },
          h(
            "div",
            { class: "split-line" },
            h("span", {}, "meta-latent ", h("span", { class: "id" }, String(entry.meta_latent))),
            h("span", { class: "numbers" }, `weight ${number(entry.weight)}`),
          ),
          h(
            "div",
            { class: "children" },
            (entry.siblings || [])
              .filter((sibling) => sibling.latent !== latent.latent)
              .map((sibling) =>
                h(
                  "div",
                  {},
                  latentLink(latent.sae, sibling.latent, false),
                  chips(sibling.top_tokens, 4),
                  h("span", { class: "soft" }, number(sibling.weight)),
                ),
              ),
          ),
        ),
      ),
    ),
  );
}

export function matches(latent) {
  if (!latent.matches?.length) return null;
  const how = { match: "matched one to one", nearest: "nearest row" };
  const rows = latent.matches.map((entry) => [
    latentLink(entry.sae, entry.latent, true, true),
    how[entry.how] || "",
    h("a", { href: comparison(latent, entry), "aria-label": `compare the two, cosine ${fixed(entry.cosine)}` }, fixed(entry.cosine)),
  ]);
  return card(
    "Matches in other SAEs",
    "the latents whose decoder rows are most similar",
    table([{ label: "latent", text: true }, { label: "kind", text: true }, { label: "cosine" }], rows, { label: "Matches" }),
  );
}
