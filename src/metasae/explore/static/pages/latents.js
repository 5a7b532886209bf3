// Latents: one SAE's latents, searched, filtered and sorted; the address keeps how.

import { data, STATIC } from "../data.js";
import { h, sameAs, saeName } from "../dom.js";
import { List, PAGE } from "../list.js";

const LABELS = ["sense split", "duplicate", "absorption", "junk", "keep", "unsure"];

export async function page({ parts, query }) {
  const { saes } = await data.overview();
  if (!saes.length) throw new Error("this run has no SAE yet");
  const sae = parts[0] || saes[0].name;
  const state = {
    sort: query.get("sort") || "rate",
    desc: query.get("desc") || "1",
    search: query.get("search") || "",
    label: query.get("label") || "",
    min_rate: query.get("min_rate") || "",
    max_rate: query.get("max_rate") || "",
    dead: query.get("dead") || "",
  };
  const first = await data.latents(sae, { ...state, offset: 0, limit: PAGE });
  const list = new List(sae, state, first);
  const node = h("div", { class: "page" }, h("section", { class: "card" }, toolbar(saes, sae, state, list), same(saes, sae), list.node));
  return {
    title: `Latents of ${sae}`,
    node,
    ready: () => list.show(),
    step: (by) => list.step(by),
    clear: () => list.change({ search: "", label: "", min_rate: "", max_rate: "" }),
    close: () => list.close(),
  };
}

function same(saes, sae) {
  const other = sameAs(saes, sae);
  if (!other) return null;
  const link = h("a", { href: `#/latents/${encodeURIComponent(other)}` }, saeName(other));
  return h("p", { class: "note" }, "Same weights as ", link, ", where its firings are: see ", other, ".");
}

function toolbar(saes, sae, state, list) {
  const pick = h(
    "select",
    {
      "aria-label": "SAE",
      onchange: () => {
        location.hash = `#/latents/${encodeURIComponent(pick.value)}`;
      },
    },
    saes.map(({ name }) => h("option", { value: name, selected: name === sae }, name)),
  );
  const field = (name, properties) => {
    const input = h("input", { ...properties, value: state[name] });
    let waiting = 0;
    input.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => list.change({ [name]: input.value.trim() }), 180);
    });
    list.fields[name] = input;
    return input;
  };
  const label = h(
    "select",
    { onchange: () => list.change({ label: label.value }) },
    h("option", { value: "" }, "any"),
    LABELS.map((name) => h("option", { selected: state.label === name }, name)),
  );
  list.fields.label = label;
  const dead = h("input", {
    type: "checkbox",
    checked: state.dead === "1",
    onchange: () => list.change({ dead: dead.checked ? "1" : "" }),
  });
  return h(
    "div",
    { class: "toolbar" },
    h("label", {}, "SAE", pick),
    h(
      "label",
      { class: "grow" },
      "Search",
      field("search", {
        type: "search",
        placeholder: "a token, or words of an explanation",
        "data-search": true,
        "aria-label": "Search tokens and explanations",
        autocomplete: "off",
        spellcheck: "false",
      }),
    ),
    h("label", {}, "Rate from", field("min_rate", { type: "number", min: "0", max: "1", step: "any", placeholder: "0" })),
    h("label", {}, "to", field("max_rate", { type: "number", min: "0", max: "1", step: "any", placeholder: "1" })),
    STATIC ? null : h("label", {}, "Label", label),
    h("label", { class: "check" }, dead, h("span", {}, "dead too")),
    list.picker(),
    list.count,
  );
}
