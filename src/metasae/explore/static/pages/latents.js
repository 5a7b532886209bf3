// Latents: one SAE's latents, by a preset or searched, filtered and sorted; the address keeps how.

import { data, STATIC } from "../data.js";
import { h, sameAs, saeName } from "../dom.js";
import { List, PAGE } from "../list.js";
import { presetsFor, stateOf } from "../presets.js";

const LABELS = ["sense split", "duplicate", "absorption", "junk", "keep", "unsure"];
const NAMES = ["sort", "desc", "search", "label", "min_rate", "max_rate", "dead"];

export async function page({ parts, query }) {
  const { saes, tokens } = await data.overview();
  if (!saes.length) throw new Error("this run has no SAE yet");
  const sae = parts[0] || saes[0].name;
  const asked = Object.fromEntries(NAMES.map((name) => [name, query.get(name) || ""]));
  // what the SAE has numbers for decides which presets there are
  const { columns } = await data.latents(sae, { sort: "latent", desc: "0", offset: 0, limit: 1 });
  const presets = presetsFor(columns);
  const nothing = NAMES.every((name) => !asked[name]);
  const alike = (preset) => Object.entries({ ...Object.fromEntries(NAMES.map((name) => [name, ""])), ...stateOf(preset, tokens) }).every(([name, value]) => (asked[name] || (name === "desc" ? "1" : "")) === value);
  const wanted = presets.find(({ key }) => key === query.get("preset")) || (nothing ? presets[0] : presets.find(alike)) || null;
  const state = wanted ? { ...asked, ...stateOf(wanted, tokens) } : { ...asked, sort: asked.sort || (asked.search ? "specific" : "rate"), desc: asked.desc || "1" };
  const first = await data.latents(sae, { ...state, offset: 0, limit: PAGE });
  const list = new List(sae, state, first);
  const buttons = presetButtons(presets, wanted, list, tokens);
  const node = h(
    "div",
    { class: "page" },
    h("section", { class: "card" }, h("h1", { class: "hidden-text" }, `Latents of ${sae}`), toolbar(saes, sae, state, list), buttons, same(saes, sae), list.node),
  );
  return {
    title: `Latents of ${sae}`,
    node,
    ready: () => list.show(),
    step: (by) => list.step(by),
    clear: () => list.change({ search: "", label: "", min_rate: "", max_rate: "" }),
    close: () => list.close(),
  };
}

/** One button a preset; in words, below, what the one that is pressed shows. */
function presetButtons(presets, wanted, list, tokens) {
  const why = h("span", { class: "note" });
  const buttons = presets.map((preset) =>
    h("button", { type: "button", "aria-pressed": "false", "aria-description": preset.why, onclick: () => choose(preset) }, preset.title),
  );
  function mark(preset) {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(presets[i] === preset)));
    why.textContent = preset?.why || "";
  }
  function choose(preset) {
    list.change({ search: "", label: "", max_rate: "", dead: "", ...stateOf(preset, tokens) });
    mark(preset);
  }
  // another order, filter or search is no preset any more
  list.changed = () => mark(null);
  mark(wanted);
  return h("div", { class: "labels", role: "group", "aria-label": "Latents worth a look" }, buttons, why);
}

function same(saes, sae) {
  const other = sameAs(saes, sae);
  if (!other) return null;
  const link = h("a", { href: `#/latents/${encodeURIComponent(other)}` }, saeName(other));
  return h("p", { class: "note" }, "Same weights as ", link, ", whose firings are kept: see ", other, ".");
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
  const rate = (name, placeholder) => field(name, { type: "number", min: "0", max: "1", step: "any", placeholder });
  const filters = h(
    "details",
    { class: "pick" },
    h("summary", {}, "Filters"),
    h(
      "div",
      {},
      h("label", {}, "firing rate at least", rate("min_rate", "0")),
      h("label", {}, "at most", rate("max_rate", "1")),
      STATIC ? null : h("label", {}, "label", label),
      h("label", {}, dead, "include dead latents"),
    ),
  );
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
    filters,
    list.picker(),
    list.count,
  );
}
