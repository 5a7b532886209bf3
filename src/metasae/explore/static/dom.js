// Elements made in code. Data reaches the page as text only: there is no way here to hand over markup.

/** h("p", {class: "note", onclick: f}, "text", child, [more]) -> an element. Strings become text nodes; null and false are left out. */
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  add(element, children);
  return element;
}

export function add(element, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** A number in few digits: 0.00723, 31.9, 12,345; – for none. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  if (Number.isInteger(value)) return value.toLocaleString("en-US").replace(/^-/, "−");
  const size = Math.abs(value);
  if (size >= 10 ** digits - 0.5) return Math.round(value).toLocaleString("en-US").replace(/^-/, "−");
  if (size < 1e-4)
    return value
      .toExponential(Math.max(digits - 2, 0))
      .replace("e-", "e−")
      .replace(/^-/, "−");
  return value.toPrecision(digits).replace(/^-/, "−");
}

/** A share as a percentage: 0.65%. */
export function percent(value, digits = 3) {
  return value === null || value === undefined ? "–" : number(100 * value, digits) + "%";
}

/** A token as it is shown: nothing invisible. */
export function shown(token) {
  if (token === "") return "∅";
  return token
    .replace(/\r/g, "␍")
    .replace(/\n/g, "↵")
    .replace(/\t/g, "⇥")
    .replace(/[\u0000-\u001f\u007f]/g, "�");
}

/** A token standing alone, in its own direction of writing. spaces: its outer spaces are marked, else only where there is nothing else. */
export function chip(token, kind = "token", spaces = false) {
  const text = shown(token);
  const bare = text.trim();
  return h("bdi", { class: kind }, spaces || !bare ? text.replace(/^ +| +$/g, (some) => "␣".repeat(some.length)) || "∅" : bare);
}

/** Tokens as chips with their outer spaces marked: ` cat` and `cat` are two tokens, in whichever lists they stand. */
export function apart(tokens) {
  return tokens.map((token) => chip(token, "token", true));
}

export function chips(tokens, most = 6) {
  return h("span", { class: "chips" }, apart((tokens || []).slice(0, most)));
}

/** The arm of an SAE's name: joint-s0 -> joint. */
export function armOf(sae) {
  return sae.replace(/-s\d+$/, "");
}

const KNOWN = ["solo", "control", "joint", "sequential"];

/** The class that carries an arm's colours. */
export function armClass(arm) {
  if (KNOWN.includes(arm)) return `arm-${arm}`;
  const sum = [...new TextEncoder().encode(arm)].reduce((total, byte) => total + byte, 0);
  return `arm-other-${sum % 3}`;
}

export function saeName(sae) {
  return h("span", { class: `sae ${armClass(armOf(sae))}` }, h("span", { class: "dot", "aria-hidden": "true" }), sae);
}

/** Of an SAE without firings: another one with the same weights that has them, else null. saes: the overview's. */
export function sameAs(saes, name) {
  const own = saes.find((sae) => sae.name === name);
  if (!own || own.has_firings || !own.weights) return null;
  return saes.find((sae) => sae.name !== name && sae.has_firings && sae.weights === own.weights)?.name ?? null;
}

export function latentPath(sae, latent) {
  return `#/latent/${encodeURIComponent(sae)}/${latent}`;
}

export function latentLink(sae, latent, withSae = true) {
  return h(
    "a",
    { href: latentPath(sae, latent), class: "latent-link" },
    withSae ? [saeName(sae), " "] : null,
    h("span", { class: "id" }, String(latent)),
  );
}

/** A section with a heading and, in small print, the conditions of what it shows. */
export function card(title, note, ...children) {
  return h(
    "section",
    { class: "card" },
    h("div", { class: "card-head" }, h("h2", {}, title), note ? h("p", { class: "note" }, note) : null),
    children,
  );
}

/** A plain table. columns: [{label, title?, text?: left-aligned}], rows: arrays of cells. */
export function table(columns, rows, { label, empty = "nothing here" } = {}) {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  return h(
    "div",
    { class: "wide", tabindex: "0", role: "group", "aria-label": label },
    h(
      "table",
      { "aria-label": label },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          columns.map((column) => h("th", { scope: "col", class: column.text ? "text" : null, title: column.title }, column.label)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((cells) =>
          h(
            "tr",
            { class: cells.kind },
            (cells.cells || cells).map((cell, i) => h("td", { class: columns[i].text ? "text" : null }, cell)),
          ),
        ),
      ),
    ),
  );
}

/** Announced to screen readers. */
export function say(text) {
  document.getElementById("said").textContent = text;
}
