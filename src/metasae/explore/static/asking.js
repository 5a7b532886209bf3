// A latent asked: on a sentence of one's own, in the whole document round a window, and with the model steered by it.

import { data } from "./data.js";
import { card, h, number, say } from "./dom.js";
import { windowOf } from "./windows.js";

/** A card in which the latent is shown on a sentence. */
export function onYourText(latent) {
  const out = h("ol", { class: "list", "aria-label": "Your text" });
  const ask = form("Your text", "A sentence of your own", "Show", async (text) => {
    const answer = await data.tryText(text);
    const values = answer.saes[latent.sae].fired.map((fired) => fired.find(([id]) => id === latent.latent)?.[1] ?? 0);
    out.replaceChildren(windowOf({ tokens: answer.tokens, names: answer.names, values, peak: values.indexOf(Math.max(...values)) }, latent.max || Math.max(...values)));
    const on = values.filter((value) => value > 0).length;
    return `fires on ${number(on)} of ${number(values.length)} tokens${answer.left_out ? `; the last ${number(answer.left_out)} tokens were left out` : ""}`;
  });
  return card("On your text", "the first text takes longer, as the model is loaded", ask, out);
}

/** A card that writes text with the latent set to a value, beside the text without. For runs whose model is causal. */
export function steering(latent) {
  const value = h("input", { type: "number", step: "any", class: "short", value: String(Number((latent.max || 1).toPrecision(3))) });
  const out = h("div", { class: "columns" });
  const ask = form(
    "Prompt",
    "I think that",
    "Generate",
    async (text) => {
      if (value.value === "") throw new Error("enter a strength");
      const answer = await data.steer(latent.sae, latent.latent, text, Number(value.value));
      const side = (title, said) => h("div", {}, h("h3", {}, title), h("p", { class: "written" }, h("span", { class: "soft" }, answer.prompt), said));
      out.replaceChildren(side("without steering", answer.without), side(`with the latent at ${number(Number(value.value))}`, answer.with));
      return "greedy: the most likely token at each step";
    },
    h("label", { class: "note" }, "Strength ", value),
  );
  return card("Steer with it", "sets the latent to this strength at every token: its largest activation is a strong push, 0 switches it off", ask, out);
}

/** run(text) -> what is said when it is done. more: further fields. */
function form(label, placeholder, button, run, more = null) {
  const text = h("input", { type: "text", class: "grow", "aria-label": label, placeholder, autocomplete: "off" });
  const send = h("button", {}, button);
  const state = h("span", { class: "note", role: "status" });
  const node = h("form", { class: "labels" }, text, more, send, state);
  whenSent(node, text, send, state, "the model reads…", run);
  return node;
}

/** Runs `run` on what was written when a form is sent, once at a time. run(text) -> what is said then. */
export function whenSent(node, text, send, state, waiting, run) {
  node.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!text.value.trim() || send.disabled) return;
    send.disabled = true;
    state.textContent = waiting;
    try {
      state.textContent = await run(text.value);
    } catch (error) {
      state.textContent = error.message;
    }
    send.disabled = false;
    say(state.textContent || "done");
  });
}

/** A button that puts the document round a window in the window's place, and back. entry: the window; item: its list item. */
export function contextButton(latent, entry, item) {
  const button = h("button", { type: "button", class: "plain value", "aria-expanded": "false", "aria-description": `document ${entry.document}, from token ${entry.start}` }, "more text");
  let whole = null;
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    if (whole?.isConnected) {
      whole.remove();
      button.setAttribute("aria-expanded", "false");
      return;
    }
    button.disabled = true;
    try {
      whole ??= wholeOf(await data.document(latent.sae, latent.latent, entry.place + entry.peak), latent.max);
      item.after(whole);
      button.setAttribute("aria-expanded", "true");
      const peak = whole.querySelector(".peak");
      const text = whole.querySelector(".text");
      if (peak) text.scrollTop = peak.offsetTop - text.offsetTop - text.clientHeight / 2;
    } catch (error) {
      say(error.message);
      button.textContent = error.message;
    }
    button.disabled = false;
  });
  return button;
}

function wholeOf(page, max) {
  const row = windowOf(page, max);
  row.classList.add("document");
  const shown = page.tokens.length === page.n_tokens ? "all" : `tokens ${number(page.start)} to ${number(page.start + page.tokens.length - 1)}, of`;
  row.prepend(h("p", { class: "note" }, `Document ${page.document} of the evaluation text: ${shown} ${number(page.n_tokens)} tokens that were read`));
  return row;
}
