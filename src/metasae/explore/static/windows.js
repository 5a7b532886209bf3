// Windows of text with a latent's activations as shades of its tokens.

import { h, number, shown } from "./dom.js";

const LEVELS = 9;

function level(value, max) {
  return Math.min(LEVELS, Math.max(1, Math.ceil((LEVELS * value) / (max || value))));
}

/** Shade classes for an activation; "" where the latent is silent. */
export function shade(value, max) {
  return value > 0 ? `on h${level(value, max)}` : "";
}

/** What a token is called alone: its piece of the text, or its bytes where it is a part of a character. */
export function nameOf(entry, i) {
  return entry.names?.[i] ?? entry.tokens[i];
}

/**
 * The tokens of one window. classes(i) -> classes of token i; hint(i) -> what the box says, or null. A token without
 * text is a part of the character that follows: what is shown of the last token that has classes is shown of both.
 */
export function tokens(texts, classes, hint) {
  const line = h("span", { class: "text", dir: "auto" });
  let plain = "";
  let before = null;
  texts.forEach((token, place) => {
    const text = line.childNodes.length || plain ? token : token.replace(/^ +(?=.)/s, "");
    const own = classes(place);
    if (token === "" && place + 1 < texts.length) {
      if (own && (!before || own.includes("peak"))) before = { kind: own, i: place };
      return;
    }
    const { kind, i } = before && !own.includes("peak") && (before.kind.includes("peak") || !own) ? before : { kind: own, i: place };
    before = null;
    // runs of silent tokens are one piece of text: a page has thousands of them
    if (!kind) {
      plain += shown(text);
      return;
    }
    // the space before a word is not shaded: it would stay behind at the end of a line
    const bare = text.replace(/^ +(?=.)/s, "");
    plain += " ".repeat(text.length - bare.length);
    if (plain) {
      line.append(plain);
      plain = "";
    }
    const piece = h("span", { class: `t ${kind}`, "data-i": String(i) }, shown(bare));
    piece.hint = () => hint?.(i);
    line.append(piece);
  });
  if (plain) line.append(plain);
  return line;
}

/**
 * One window of a latent: {tokens, values, peak, document, start}, perhaps with `beside`, another latent's values.
 * onToken(text) when a firing token is clicked; more(entry, item) -> what stands at the end of the line.
 */
export function windowOf(entry, max, onToken, more) {
  const peak = entry.peak ?? entry.values.indexOf(Math.max(...entry.values));
  const line = tokens(
    entry.tokens,
    (i) =>
      [shade(entry.values[i], max), i === peak && entry.values[i] > 0 ? "peak" : "", entry.beside?.[i] > 0 ? "parent" : ""]
        .filter(Boolean)
        .join(" "),
    (i) =>
      [
        `${shown(nameOf(entry, i)).trim() || "space"}: ${number(entry.values[i])} (${Math.round((100 * entry.values[i]) / max)}% of its largest)`,
        entry.beside ? `the other: ${number(entry.beside[i])}` : "",
      ]
        .filter(Boolean)
        .join("\n"),
  );
  if (onToken)
    line.addEventListener("click", (event) => {
      const i = event.target.dataset?.i;
      if (i !== undefined) onToken(nameOf(entry, Number(i)));
    });
  const value = entry.values[peak] || 0;
  const item = h("li", { class: "window item", tabindex: "-1", "data-peak": nameOf(entry, peak) }, line);
  item.append(h("span", { class: "value" }, value > 0 ? number(value) : "silent"));
  if (more) item.append(more(entry, item));
  return item;
}

/** A list of windows; nothing but a note where there are none. */
export function windowList(entries, max, onToken, label, more) {
  if (!entries?.length) return h("p", { class: "empty" }, "no windows");
  return h(
    "ol",
    { class: "list", "aria-label": label },
    entries.map((entry) => windowOf(entry, max, onToken, more)),
  );
}
