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

/** A number in few digits, never as 1e-3: 0.00723, 31.9, 12,345; – for none. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const sign = value < 0 ? "−" : "";
  if (Number.isInteger(value) || size >= 10 ** digits - 0.5) return sign + Math.round(size).toLocaleString("en-US");
  if (size < 1e-7) return sign + tiny(size);
  const kept = size < 1e-4 ? 2 : digits;
  const rounded = Number(size.toPrecision(kept));
  return sign + rounded.toFixed(Math.max(0, kept - 1 - Math.floor(Math.log10(rounded))));
}

function tiny(size) {
  const power = Math.floor(Math.log10(size));
  return `${(size / 10 ** power).toFixed(1)} × 10⁻${[...String(-power)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`;
}

/** Text of the comparison with a minus as every other number has it: -4.1% -> −4.1%. */
export function minus(text) {
  return text.replace(/-(?=[\d.])/g, "−");
}

/** A share as a percentage: 0.65%. */
export function percent(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const points = 100 * value;
  // a whole number of points has as many digits as its neighbours in a column
  return (Number.isInteger(points) && points > 0 && points < 10 ** (digits - 1) ? points.toPrecision(digits) : number(points, digits)) + "%";
}

/** A number that lies between −1 and 1 (a cosine, phi, a score): always three places, so that a column is even. */
export function fixed(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return value.toFixed(3).replace(/^-/, Number(value.toFixed(3)) === 0 ? "" : "−");
}

const FORMATS = {
  rate: (value) => percent(value),
  nearest_phi: fixed,
  nearest_cosine: fixed,
  encoder_cosine: fixed,
  match_cosine: fixed,
  meta_e: fixed,
  split_score: fixed,
};

/** A latent's number as every page writes it. key: a column of a list of latents. */
export function valueOf(key, value) {
  if (key.startsWith("interp.")) return fixed(value);
  return (FORMATS[key] || number)(value);
}

/** A word whose meaning comes on hover, focus and tap, and is read out with it; without a meaning just the word. */
export function term(label, meaning) {
  if (!meaning) return h("span", {}, label);
  const word = h("button", { type: "button", class: "term", "aria-description": meaning }, label);
  word.hint = () => meaning;
  return word;
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

/** What a latent without a judge's explanation is told by: the tokens with the most firings beyond chance, with the lift of each. tokens: as a latent's page has them. */
export function byTokens(tokens, most = 3) {
  const telling = ({ share, lift }) => share * Math.log(lift);
  const told = (tokens || []).filter(({ lift }) => lift > 1).sort((a, b) => telling(b) - telling(a)).slice(0, most);
  if (!told.length) return null;
  const lifts = told.map(({ token, lift, share }, i) => [
    i ? (i + 1 === told.length ? " and " : ", ") : "",
    chip(token, "token", true),
    ` (${percent(share, 2)} of its firings, ${number(lift, 2)} times as often as chance)`,
  ]);
  return h("span", {}, "No judge has explained this latent. It fires more often than chance on ", lifts, ".");
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

/** whole: the link of the whole row or item that it stands in. */
export function latentLink(sae, latent, withSae = true, whole = false) {
  return h(
    "a",
    { href: latentPath(sae, latent), class: `latent-link${whole ? " whole" : ""}` },
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
