// Two latents side by side: how alike their rows are, and where one fires without the other.

import { data, STATIC } from "../data.js";
import { armClass, armOf, card, chips, fixed, h, latentLink, number, say, term, valueOf } from "../dom.js";
import { windowList } from "../windows.js";

export async function page({ parts }) {
  const run = await data.overview();
  const form = picker(run.saes, parts);
  if (parts.length < 2) return { title: "Compare", node: h("div", { class: "page" }, form, await examples(run.saes)) };
  const [a, b] = parts;
  for (const text of [a, b])
    if (!/^.+:\d+$/.test(text)) throw new Error(`'${text}' is no latent; an address is #/compare/solo-s0:17/joint-s0:4`);
  const found = await data.compare(a, b);
  const [left, right] = [side(found.a, a), side(found.b, b)];
  const tile = (label, value, meaning) => h("div", {}, h("dt", {}, term(label, meaning)), h("dd", {}, value));
  const names = [`${left.sae} ${left.latent}`, `${right.sae} ${right.latent}`];
  // a window has the activations of both; shaded are those of the first named, underlined where the other fires
  const where = (title, entries, of, other) => {
    const [mine, its] = of === left ? ["a", "b"] : ["b", "a"];
    const seen = entries?.map((entry) => ({ ...entry, values: entry[mine], beside: entry[its] }));
    return h(
      "div",
      { class: armClass(armOf(of.sae)) },
      card(
        title,
        seen?.length ? `${seen.length} windows; shaded: ${of.sae} ${of.latent}; underlined: ${other.sae} ${other.latent} fires` : null,
        seen
          ? windowList(seen, of.max || largest(seen), null, title)
          : h(
              "p",
              { class: "empty" },
              STATIC ? "not in this static copy, which holds no firings" : "these two were not measured on the same text",
            ),
      ),
    );
  };
  const node = h(
    "div",
    { class: "page" },
    form,
    h(
      "section",
      { class: "card" },
      h("h1", {}, names.join(" and ")),
      h(
        "dl",
        { class: "tiles" },
        tile("phi", fixed(found.phi), "correlation of firing on the held-out tokens"),
        tile("decoder cosine", fixed(found.cosine), "cosine of the two decoder rows"),
        tile("encoder cosine", fixed(found.encoder_cosine), "cosine of the two encoder columns"),
        tile("both fire", number(found.n_both), "held-out tokens on which both fire"),
        tile(`firings of ${left.sae} ${left.latent}`, number(found.n_a)),
        tile(`firings of ${right.sae} ${right.latent}`, number(found.n_b)),
      ),
      h("p", { class: "note" }, `exact counts on ${number(run.tokens)} held-out tokens`),
    ),
    h("div", { class: "columns" }, summary(left), summary(right)),
    where("Both fire", found.both, left, right),
    h(
      "div",
      { class: "columns" },
      where(`Only ${names[0]}`, found.only_a, left, right),
      where(`Only ${names[1]}`, found.only_b, right, left),
    ),
  );
  return { title: names.join(" and "), node };
}

function side(given, text) {
  const cut = text.lastIndexOf(":");
  return { sae: text.slice(0, cut), latent: Number(text.slice(cut + 1)), ...given };
}

function largest(entries) {
  return Math.max(1e-9, ...entries.flatMap((entry) => entry.values));
}

function summary(latent) {
  const told = { ...latent.scalars, ...latent };
  const text = typeof latent.explanation === "string" ? latent.explanation : latent.explanation?.text;
  return h(
    "section",
    { class: "card" },
    h("div", { class: "title" }, latentLink(latent.sae, latent.latent), chips(told.top_tokens)),
    text ? h("p", {}, text) : null,
    h("p", { class: "note" }, `firing rate ${valueOf("rate", told.rate)} · largest activation ${number(told.max)}`),
  );
}

/** Three pairs that are there in any run: a split, a latent and its match, two latents that fire together. */
async function examples(saes) {
  const rows = (await Promise.all([ofASplit(), ofAMatch(saes), ofPartners(saes)].map((asked) => asked.catch(() => null)))).filter(Boolean);
  const line = ([a, b, why]) =>
    h("li", { class: "item", tabindex: "-1" }, h("a", { class: "whole", href: `#/compare/${encodeURIComponent(a)}/${encodeURIComponent(b)}` }, `${a.replace(":", " ")} and ${b.replace(":", " ")}`), h("span", { class: "soft" }, ` – ${why}`));
  return card(
    "Examples",
    "or choose two latents above, by number or by a token that they fire on; they may be of one SAE or of two",
    rows.length ? h("ul", { class: "list" }, rows.map(line)) : h("p", { class: "empty" }, "this run has no examples yet"),
  );
}

const named = ({ sae, latent }) => `${sae}:${latent}`;

async function ofASplit() {
  const [split] = (await data.splits({ kind: "splits", limit: 1 })).rows;
  return split && [named(split.parent), named(split.children[0]), "the parent and a child of the clearest split"];
}

async function ofAMatch(saes) {
  const { rows } = await data.latents(saes[0].name, { sort: "match_cosine", desc: "0", min_rate: "0.001", limit: 1 });
  const { matches } = await data.latent(saes[0].name, rows[0].latent);
  const match = matches.find(({ sae, cosine }) => sae !== saes[0].name && Math.abs(cosine - rows[0].match_cosine) < 1e-6) || matches[0];
  return match && [named({ sae: saes[0].name, latent: rows[0].latent }), named(match), "the latent with the lowest cosine with its match, and that match"];
}

async function ofPartners(saes) {
  const { rows } = await data.latents(saes[0].name, { sort: "nearest_phi", desc: "1", limit: 1 });
  const [near] = (await data.latent(saes[0].name, rows[0].latent)).neighbours.phi;
  return near && [named({ sae: saes[0].name, latent: rows[0].latent }), named(near), "the two latents of one SAE with the highest phi"];
}

/** "17", or a token: then the latent of the SAE that is most specific to it. */
async function latentOf(sae, text) {
  const given = text.trim();
  if (/^\d+$/.test(given)) return Number(given);
  const group = (await data.search(given)).groups.find((found) => found.sae === sae);
  if (!group) throw new Error(`no latent of ${sae} has “${given}” among its top tokens`);
  return group.rows[0].latent;
}

function picker(saes, parts) {
  const field = (text, i) => {
    const given = side({}, text || `${saes[Math.min(i, saes.length - 1)]?.name || ""}:0`);
    const sae = h(
      "select",
      { "aria-label": `SAE of the ${i ? "second" : "first"}` },
      saes.map(({ name }) => h("option", { selected: name === given.sae }, name)),
    );
    const latent = h("input", {
      type: "text",
      required: true,
      class: "number-or-token",
      placeholder: "number or token",
      value: text ? String(given.latent) : "",
      "aria-label": `Number or token of the ${i ? "second" : "first"}`,
      "data-search": i === 0,
      autocomplete: "off",
    });
    return { sae, latent };
  };
  const [a, b] = [field(parts[0], 0), field(parts[1], 1)];
  const state = h("span", { class: "note", role: "status" });
  const address = async ({ sae, latent }) => encodeURIComponent(named({ sae: sae.value, latent: await latentOf(sae.value, latent.value) }));
  const form = h(
    "form",
    {
      class: "toolbar",
      onsubmit: async (event) => {
        event.preventDefault();
        try {
          const [first, second] = await Promise.all([a, b].map(address));
          location.hash = `#/compare/${first}/${second}`;
        } catch (error) {
          state.textContent = error.message;
          say(error.message);
        }
      },
    },
    h("label", {}, "First latent", h("span", {}, a.sae, " ", a.latent)),
    h("label", {}, "Second latent", h("span", {}, b.sae, " ", b.latent)),
    h("button", {}, "Compare"),
    state,
  );
  return h("section", { class: "card" }, parts.length < 2 ? h("h1", {}, "Compare two latents") : null, form);
}
