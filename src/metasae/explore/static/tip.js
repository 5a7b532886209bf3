// The little box: a token's value, or what a word means. It comes on hover, on focus and on a tap, and Escape takes it away.

const tip = document.getElementById("tip");
let shownFor = null;

function show(target) {
  const text = target.hint?.();
  if (!text) return hideTip();
  shownFor = target;
  tip.textContent = text;
  tip.hidden = false;
  const box = target.getBoundingClientRect();
  const size = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - size.width - 8))}px`;
  tip.style.top = `${box.top - size.height - 5 < 0 ? box.bottom + 5 : box.top - size.height - 5}px`;
}

export function hideTip() {
  tip.hidden = true;
  shownFor = null;
}

document.addEventListener("pointerover", ({ target }) => {
  if (target.hint) show(target);
  else if (shownFor !== document.activeElement) hideTip();
});
document.addEventListener("focusin", ({ target }) => (target.hint ? show(target) : hideTip()));
document.addEventListener("focusout", hideTip);
// a tap has no hover before it, and a button need not take the focus
document.addEventListener("click", ({ target }) => (target.hint ? show(target) : hideTip()));
addEventListener("scroll", () => (tip.hidden ? null : hideTip()), { passive: true });
