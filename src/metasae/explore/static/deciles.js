// A latent's windows by tenths of their strongest activation.

import { contextButton } from "./asking.js";
import { STATIC } from "./data.js";
import { add, card, chip, h, number, say } from "./dom.js";
import { nameOf, windowList } from "./windows.js";

/** The windows by decile of their strongest activation, perhaps only those whose strongest token is one. */
export class Deciles {
  constructor(latent) {
    this.latent = latent;
    this.token = null;
    this.more = STATIC ? null : (entry, item) => contextButton(latent, entry, item);
    this.body = h("div", {});
    this.filter = h("p", { class: "note" });
    const note = latent.windows?.length
      ? `sorted into tenths by their strongest activation; ${number(latent.windows.length)} windows, ${number(latent.scalars.firings)} firings`
      : null;
    this.node = card("Where it fires", note, this.filter, this.body);
    this.node.classList.add("where");
    this.only(null);
  }

  only(token) {
    this.token = token;
    const { latent } = this;
    const kept = (latent.windows || []).filter((entry) => token === null || nameOf(entry, entry.peak) === token);
    this.filter.replaceChildren();
    if (token !== null) {
      add(
        this.filter,
        `${kept.length} of ${latent.windows.length} windows whose strongest token is `,
        chip(token, "token", true),
        " ",
        h("button", { type: "button", onclick: () => this.only(null) }, "all windows"),
      );
      say(this.filter.textContent);
    } else add(this.filter, latent.windows?.length ? "Click a shaded token to see only the windows that peak on it." : "");
    const deciles = new Map();
    for (const entry of kept) deciles.set(entry.decile, [...(deciles.get(entry.decile) || []), entry]);
    this.body.replaceChildren();
    if (!latent.windows?.length)
      this.body.append(
        h(
          "p",
          { class: "empty" },
          latent.scalars.rate === 0 ? "It never fired on these tokens." : "No firings were kept for this SAE, so there are no windows.",
        ),
      );
    for (const [decile, entries] of deciles) {
      const peaks = entries.map((entry) => entry.values[entry.peak] ?? 0);
      add(
        this.body,
        h(
          "div",
          { class: "decile" },
          h("h3", {}, decileName(decile)),
          h("span", { class: "note" }, `${number(Math.min(...peaks))} to ${number(Math.max(...peaks))}`),
        ),
        windowList(entries, latent.max, (text) => this.only(text), decileName(decile), this.more),
      );
    }
    if (token === null && latent.silent?.length)
      add(
        this.body,
        h("div", { class: "decile" }, h("h3", {}, "Windows in which it is silent")),
        windowList(latent.silent, latent.max, null, "Windows in which it is silent"),
      );
  }
}

function decileName(decile) {
  if (typeof decile !== "number") return "Windows";
  return decile === 9 ? "Top tenth" : decile === 0 ? "Lowest tenth" : `Tenth ${decile + 1} of 10`;
}
