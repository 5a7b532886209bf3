// What became of the latents of a split: whether the parent lives on in the other SAE, and a child was there already.

import { h, latentLink, fixed } from "./dom.js";

export function livesOn(parent) {
  return said(parent.lives_on, "the parent lives on as ", "the parent is gone; closest to it, beside its children: ", "the parent is gone");
}

export function already(child) {
  return said(child.already, "was already ", "new; closest to it, beside the parent: ", "new");
}

function said(counterpart, same, near, none) {
  if (!counterpart) return h("span", { class: "soft" }, none);
  const { sae, latent, phi, same: isSame } = counterpart;
  return h("span", { class: isSame ? null : "soft" }, isSame ? h("b", {}, same) : near, latentLink(sae, latent), ` (phi ${fixed(phi)})`);
}
