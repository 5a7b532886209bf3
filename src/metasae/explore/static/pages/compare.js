// Two latents side by side: how alike their rows are, and where one fires without the other.

import { data, STATIC } from "../data.js";
import { armClass, armOf, card, chips, h, latentLink, number } from "../dom.js";
import { windowList } from "../windows.js";

export async function page({ parts }) {
  const { saes, tokens } = await data.overview();
  const form = picker(saes, parts);
  if (parts.length < 2) {
    return {
      title: "Compare",
      node: h("div", { class: "page" }, form, h("p", { class: "empty" }, "Choose two latents, of one SAE or of two.")),
    };
  }
  const [a, b] = parts;
  for (const text of [a, b])
    if (!/^.+:\d+$/.test(text)) throw new Error(`'${text}' is no latent; an address is #/compare/solo-s0:17/joint-s0:4`);
  const found = await data.compare(a, b);
  const [left, right] = [side(found.a, a), side(found.b, b)];
  const tile = (label, value, title) => h("div", { title }, h("dt", {}, label), h("dd", {}, value));
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
        tile("phi of firing", number(found.phi)),
        tile("decoder cosine", number(found.cosine)),
        tile("encoder cosine", number(found.encoder_cosine)),
        tile("both fire", number(found.n_both), "held-out tokens"),
        tile(`firings of ${left.sae} ${left.latent}`, number(found.n_a)),
        tile(`firings of ${right.sae} ${right.latent}`, number(found.n_b)),
      ),
      h("p", { class: "note" }, `exact counts on ${number(tokens)} held-out tokens`),
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
    h("p", { class: "note" }, `rate ${number(told.rate)} · largest activation ${number(told.max)}`),
  );
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
      type: "number",
      min: "0",
      step: "1",
      required: true,
      value: text ? String(given.latent) : "",
      "aria-label": `Number of the ${i ? "second" : "first"}`,
      "data-search": i === 0,
    });
    return { sae, latent };
  };
  const [a, b] = [field(parts[0], 0), field(parts[1], 1)];
  const address = ({ sae, latent }) => encodeURIComponent(`${sae.value}:${latent.value}`);
  return h(
    "form",
    {
      class: "card toolbar",
      onsubmit: (event) => {
        event.preventDefault();
        location.hash = `#/compare/${address(a)}/${address(b)}`;
      },
    },
    h("label", {}, "First latent", h("span", {}, a.sae, " ", a.latent)),
    h("label", {}, "Second latent", h("span", {}, b.sae, " ", b.latent)),
    h("button", {}, "Compare"),
  );
}
