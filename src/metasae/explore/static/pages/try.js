// Try a text: the model reads it, and every token shows which latents fire in each arm.

import { data, STATIC } from "../data.js";
import { armClass, armOf, card, chips, h, latentLink, number, sameAs, saeName, say, shown } from "../dom.js";
import { nameOf, shade } from "../windows.js";

const MOST = 40;
let last = { text: "", answer: null };

export async function page() {
  const { saes } = await data.overview();
  if (STATIC)
    return {
      title: "Try a text",
      node: h(
        "div",
        { class: "page" },
        card(
          "Try a text",
          null,
          h(
            "p",
            {},
            "Trying a text needs the model, and this is a static copy of the pages. Run ",
            h("code", {}, "metasae explore RUN"),
            " where the run lies.",
          ),
        ),
      ),
    };
  const text = h("textarea", { "data-search": true, "aria-label": "Text", placeholder: "Write or paste some text", spellcheck: "false" });
  text.value = last.text;
  const state = h("span", { class: "note", role: "status" });
  const out = h("div", { class: "stack" });
  const send = h("button", {}, "Try it");
  const form = h(
    "form",
    { class: "card" },
    h(
      "div",
      { class: "card-head" },
      h("h1", {}, "Try a text"),
      h("p", { class: "note" }, "the model and the SAEs are loaded at the first text; Ctrl+Enter sends"),
    ),
    text,
    h("div", { class: "labels" }, send, state),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!text.value.trim()) return;
    send.disabled = true;
    state.textContent = "reading…";
    try {
      last = { text: text.value, answer: await data.tryText(text.value) };
      state.textContent = last.answer.left_out ? `the last ${number(last.answer.left_out)} tokens were left out` : "";
      show(out, last.answer, saes);
    } catch (error) {
      state.textContent = error.message;
    }
    send.disabled = false;
    say(state.textContent || "done");
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  if (last.answer) show(out, last.answer, saes);
  return { title: "Try a text", node: h("div", { class: "page" }, form, out), step: (by) => out.choose?.(by) };
}

function show(out, answer, saes) {
  const names = saes.map(({ name }) => name).filter((name) => name in answer.saes);
  const seeds = [...new Set(saes.filter(({ name }) => names.includes(name)).map(({ seed }) => seed))];
  const state = { token: null, seed: seeds[0], latent: null };
  const strip = h("div", { class: "window", role: "group", "aria-label": "Tokens" });
  const title = h("h2", {});
  const lists = h("div", { class: "columns" });
  const pick = h(
    "select",
    {
      "aria-label": "Seed",
      onchange: () => {
        state.seed = seeds.find((seed) => String(seed) === pick.value);
        fill();
      },
    },
    seeds.map((seed) => h("option", { value: String(seed) }, `seed ${seed}`)),
  );

  function choose(i) {
    state.token = i;
    state.latent = null;
    strip.querySelectorAll("button").forEach((button, t) => button.setAttribute("aria-pressed", String(t === i)));
    fill();
  }

  function light() {
    const { latent } = state;
    const values = latent ? answer.saes[latent.sae].fired.map((fired) => fired.find(([id]) => id === latent.id)?.[1] || 0) : null;
    strip.className = `window ${latent ? armClass(armOf(latent.sae)) : ""}`;
    strip.querySelectorAll("button").forEach((button, t) => {
      button.className = `t ${values ? shade(values[t], Math.max(...values)) : ""}`;
    });
  }

  async function fill() {
    light();
    const whole = state.token === null;
    title.textContent = whole ? "Strongest latents in the text" : `Latents at “${shown(nameOf(answer, state.token)).trim()}”`;
    const shownNames = saes.filter(({ name, seed }) => names.includes(name) && seed === state.seed).map(({ name }) => name);
    const mine = state.token;
    const columns = await Promise.all(
      shownNames.map(async (sae) => {
        const other = sameAs(saes, sae);
        if (other && shownNames.includes(other))
          return h("section", { class: `card ${armClass(armOf(sae))}` }, h("h2", {}, saeName(sae)), h("p", { class: "note" }, "same weights as ", saeName(other), ": see there"));
        const fired = whole ? strongest(answer.saes[sae].fired) : answer.saes[sae].fired[state.token];
        const top = fired.slice(0, MOST);
        const briefs = await data
          .briefs(
            sae,
            top.map(([id]) => id),
          )
          .catch(() => ({}));
        return h(
          "section",
          { class: `card ${armClass(armOf(sae))}` },
          h(
            "div",
            { class: "card-head" },
            h("h2", {}, saeName(sae)),
            h(
              "p",
              { class: "note" },
              `${number(fired.length)} fire${whole ? " somewhere" : ""}${fired.length > MOST ? `, ${MOST} shown` : ""}`,
            ),
          ),
          h(
            "ul",
            { class: "list" },
            top.map(([id, value]) =>
              h(
                "li",
                { class: "item split-line", tabindex: "-1" },
                latentLink(sae, id, false),
                chips(briefs[id]?.top_tokens, 5),
                h("span", { class: "soft" }, briefs[id]?.explanation || ""),
                h(
                  "button",
                  {
                    type: "button",
                    class: "plain numbers",
                    title: "shade the text by this latent",
                    onclick: () => {
                      state.latent = { sae, id };
                      light();
                    },
                  },
                  number(value),
                ),
              ),
            ),
          ),
        );
      }),
    );
    if (mine === state.token) lists.replaceChildren(...columns);
  }

  strip.append(
    h(
      "span",
      { class: "text", dir: "auto" },
      answer.tokens.map((token, t) =>
        h(
          "button",
          {
            type: "button",
            class: "t",
            title: token ? null : nameOf(answer, t),
            "aria-pressed": "false",
            onclick: () => choose(state.token === t ? null : t),
          },
          // a part of a character stands before it and can be chosen, too
          shown(token || (nameOf(answer, t) ? "·" : "")),
        ),
      ),
    ),
  );
  out.replaceChildren(
    h(
      "section",
      { class: "card" },
      h(
        "div",
        { class: "card-head" },
        h("h2", {}, "Tokens"),
        h("p", { class: "note" }, "choose a token to see what fires there; a latent's value shades the text"),
        pick,
      ),
      strip,
    ),
    title,
    lists,
  );
  out.choose = (by) => choose(Math.min(Math.max((state.token ?? (by > 0 ? -1 : answer.tokens.length)) + by, 0), answer.tokens.length - 1));
  fill();
}

/** Every latent that fires anywhere, by its largest activation. */
function strongest(fired) {
  const most = new Map();
  for (const token of fired) for (const [id, value] of token) most.set(id, Math.max(value, most.get(id) || 0));
  return [...most].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
}
