// What people say about a latent or a split: buttons and a note, saved at once.

import { data, STATIC } from "./data.js";
import { h, say } from "./dom.js";

/** target: what is labelled. label: the one that counts. said: every saying about it, the last one last. names: the labels on offer. */
export function labelButtons(target, label, said, names) {
  const given = label ? (said || []).at(-1)?.note || "" : "";
  if (STATIC) {
    const told = label ? `labelled ${label}${given ? `: ${given}` : ""}` : "no label";
    return h("p", { class: "note labels" }, `${told} (this is a static copy; labels can be given in the explorer)`);
  }
  let now = label ?? null;
  const note = h("input", { type: "text", placeholder: "a note", "aria-label": "Note to the label", value: given });
  const state = h("span", { class: "note", role: "status" });
  const buttons = names.map((name) =>
    h("button", { type: "button", "aria-pressed": String(name === now), onclick: () => save(name === now ? null : name) }, name),
  );
  note.addEventListener("change", () => {
    if (now) save(now);
  });
  async function save(label) {
    try {
      await data.label(target, label, note.value.trim());
      now = label;
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.textContent === now));
      state.textContent = label ? "saved" : "label removed";
    } catch (error) {
      state.textContent = error.message;
    }
    say(state.textContent);
  }
  return h("div", { class: "labels", role: "group", "aria-label": "Label" }, buttons, note, state);
}
