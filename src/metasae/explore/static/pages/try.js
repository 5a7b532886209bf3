// Try a text: the model reads it, and the arms stand side by side, latent by latent.

import { whenSent } from "../asking.js";
import { data, STATIC } from "../data.js";
import { armClass, armOf, card, chips, h, latentLink, number, saeName, shown } from "../dom.js";
import { armsOf, linesOf, pairedLatents, valuesAt } from "../sidebyside.js";
import { nameOf, shade } from "../windows.js";

const MOST = 40;
const EXAMPLE = "We sat on the bank of the river. The bank raised its interest rate, which raised our interest.";
let last = { text: "", answer: null };

export async function page() {
  const run = await data.overview();
  if (STATIC) return { title: "Try a text", node: h("div", { class: "page" }, card("Try a text", null, h("p", {}, "Trying a text needs the model, which a static copy of the pages does not have. Run ", h("code", {}, "metasae explore RUN"), " on the machine that has the run folder."))) };
  const text = h("textarea", { "data-search": true, "aria-label": "Text", placeholder: "Write or paste some text", spellcheck: "false" });
  text.value = last.text;
  const state = h("span", { class: "note", role: "status" });
  const out = h("div", { class: "stack" });
  const send = h("button", {}, "Try it");
  const example = h("button", { type: "button", class: "plain", onclick: () => ((text.value = EXAMPLE), form.requestSubmit()) }, "Try an example");
  const form = h(
    "form",
    { class: "card" },
    h("div", { class: "card-head" }, h("h1", {}, "Try a text"), h("p", { class: "note" }, "the first text takes longer, as the model and the SAEs are loaded; Ctrl+Enter sends")),
    text,
    h("div", { class: "labels" }, send, example, state),
  );
  whenSent(form, text, send, state, "reading…", async (written) => {
    last = { text: written, answer: await data.tryText(written) };
    await show(out, last.answer, run);
    return last.answer.left_out ? `the last ${number(last.answer.left_out)} tokens were left out` : "";
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  if (last.answer) await show(out, last.answer, run);
  return { title: "Try a text", node: h("div", { class: "page" }, form, out), step: (by) => out.choose?.(by) };
}

async function show(out, answer, run) {
  const saes = run.saes.filter(({ name }) => name in answer.saes);
  const seeds = [...new Set(saes.map(({ seed }) => seed))];
  const body = h("div", { class: "stack tried" });
  const pick = h(
    "select",
    { "aria-label": "Seed", onchange: () => fill(seeds[pick.selectedIndex]) },
    seeds.map((seed) => h("option", {}, `seed ${seed}`)),
  );
  async function fill(seed) {
    const { shown: arms, alike } = armsOf(saes.filter((sae) => sae.seed === seed), run.baseline || "solo");
    const fired = Object.fromEntries(arms.map((arm) => [arm, answer.saes[arm].fired]));
    const view = new View(answer, arms, fired, await pairedLatents(arms, fired), seeds.length > 1 ? pick : null);
    const notes = alike.map(([name, like]) => h("p", { class: "note" }, saeName(name), " has the weights of ", saeName(like), ", so the same latents fire and it has no column."));
    body.replaceChildren(view.strip, ...notes, view.lines);
    out.choose = (by) => view.step(by);
  }
  await fill(seeds[0]);
  out.replaceChildren(body);
}

/** The tokens, shaded at once, and the lines of latents at one of them or in all of the text. */
class View {
  constructor(answer, arms, fired, paired, pick) {
    Object.assign(this, { answer, arms, fired, paired, token: null });
    this.lines = h("section", { class: "card" });
    this.note = h("p", { class: "note", role: "status" });
    this.buttons = answer.tokens.map((token, t) =>
      h(
        "button",
        { type: "button", class: "t", "aria-label": nameOf(answer, t).trim() || "space", "aria-pressed": "false", onclick: () => this.choose(this.token === t ? null : t) },
        // a part of a character stands before it and can be chosen, too
        shown(token || (nameOf(answer, t) ? "·" : "")),
      ),
    );
    const text = h("div", { class: "window", role: "group", "aria-label": "Tokens" }, h("span", { class: "text", dir: "auto" }, this.buttons));
    this.text = text;
    this.strip = h("section", { class: "card" }, h("div", { class: "card-head" }, h("h2", {}, "Tokens"), this.note, pick), text);
    this.choose(null);
  }

  step(by) {
    const end = this.answer.tokens.length - 1;
    this.choose(Math.min(Math.max((this.token ?? (by > 0 ? -1 : end + 1)) + by, 0), end));
  }

  choose(token) {
    this.token = token;
    this.buttons.forEach((button, t) => button.setAttribute("aria-pressed", String(t === token)));
    this.shadeDifferences();
    this.fill();
  }

  /** How much the arms differ at each token; with one arm, how strongly it fires. */
  shadeDifferences() {
    const several = this.arms.length > 1;
    this.differences ??= this.answer.tokens.map((_, t) => {
      const lines = linesOf(this.arms, valuesAt(this.arms, this.fired, t), this.paired);
      return several ? lines.filter(({ differs }) => differs).length / Math.max(1, lines.length) : (lines[0]?.most ?? 0);
    });
    this.paint(this.differences, several ? 1 : Math.max(...this.differences), "");
    this.note.textContent = several
      ? "shaded: the share of the firing latents that differ between the arms; choose a token to see its latents"
      : "shaded: the strongest activation; choose a token to see its latents";
  }

  /** sae: whose colour; id: its latent. */
  shadeLatent(sae, id) {
    const values = this.fired[sae].map((fires) => fires.find(([latent]) => latent === id)?.[1] || 0);
    this.paint(values, Math.max(...values), armClass(armOf(sae)));
    this.note.textContent = `shaded: ${sae} latent ${id}`;
  }

  paint(values, most, arm) {
    this.text.className = `window ${arm}`;
    this.buttons.forEach((button, t) => {
      button.className = `t ${shade(values[t], most)}`;
    });
  }

  async fill() {
    const { token, arms } = this;
    const lines = linesOf(arms, valuesAt(arms, this.fired, token), this.paired);
    const top = lines.slice(0, MOST);
    const briefs = await Promise.all(arms.map((arm, a) => data.briefs(arm, top.flatMap(({ cells }) => (cells[a] ? [cells[a].id] : []))).catch(() => ({}))));
    if (token !== this.token) return;
    const differing = lines.filter(({ differs }) => differs).length;
    const title = token === null ? "Strongest latents in the text" : `Latents at “${shown(nameOf(this.answer, token)).trim()}”`;
    const said = arms.length > 1 ? `${number(lines.length)} lines, ${number(differing)} of them differ; latents on one line match by their decoder rows (cosine 0.5 or more)` : `${number(lines.length)} fire`;
    this.lines.replaceChildren(
      h("div", { class: "card-head" }, h("h2", {}, title), h("p", { class: "note" }, said, lines.length > MOST ? `; the first ${MOST} are shown` : "")),
      h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": title }, this.table(top, briefs)),
    );
  }

  table(lines, briefs) {
    const { arms } = this;
    const only = (cells) => {
      const on = arms.filter((_, a) => (cells[a]?.value || 0) > 0).map(armOf);
      return h("span", { class: "tag" }, `only ${on.join(", ")}`);
    };
    return h(
      "table",
      { class: "lines", "aria-label": "Latents that fire, arm beside arm" },
      h("thead", {}, h("tr", {}, arms.map((arm) => h("th", { class: "text", scope: "col" }, saeName(arm))), arms.length > 1 ? h("th", { class: "text how", scope: "col" }, "differs") : null)),
      h(
        "tbody",
        {},
        lines.map(({ cells, differs }) =>
          h(
            "tr",
            { class: `item${differs ? " differs" : ""}`, tabindex: "-1" },
            cells.map((cell, a) => h("td", { class: "text" }, this.cell(arms[a], cell, briefs[a]))),
            arms.length > 1 ? h("td", { class: "text how" }, differs ? only(cells) : null) : null,
          ),
        ),
      ),
    );
  }

  cell(sae, cell, briefs) {
    if (!cell) return h("span", { class: "soft" }, "no match");
    const { top_tokens, explanation } = briefs[cell.id] || {};
    const value = cell.value
      ? h("button", { type: "button", class: "plain", "aria-label": `shade the text by ${sae} ${cell.id}, ${number(cell.value)}`, onclick: () => this.shadeLatent(sae, cell.id) }, number(cell.value))
      : h("span", { class: "soft" }, "silent");
    return h("span", { class: "split-line" }, latentLink(sae, cell.id, false), chips(top_tokens, 3), explanation ? h("span", { class: "soft" }, explanation) : null, value);
  }
}
