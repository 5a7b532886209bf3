// What a split's latents are in the other SAE: whether one fires like the parent, and whether one fires like a child.

import { h, latentLink, fixed } from "./dom.js";

/** merge: the arms change places, so the parent is the one that is new. */
export function livesOn(parent, merge = false) {
  return merge ? said(parent.lives_on, "The parent existed before", "The parent is new") : said(parent.lives_on, "The parent still exists", "The parent is gone");
}

export function already(child, merge = false) {
  return merge ? said(child.already, "still exists", "gone") : said(child.already, "existed before", "new");
}

function said(counterpart, same, other) {
  if (!counterpart) return h("span", { class: "soft" }, other);
  const { sae, latent, phi, same: isSame } = counterpart;
  const rest = [latentLink(sae, latent), `, phi ${fixed(phi)})`];
  return isSame ? h("span", {}, h("b", {}, same), " (as ", rest) : h("span", { class: "soft" }, other, " (nearest other: ", rest);
}
