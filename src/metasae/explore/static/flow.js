// How a latent's firings flow to its children: ribbons as wide as their share, drawn as SVG.

import { armClass, armOf, number, percent, shown, svg } from "./dom.js";

// left: where the parent stands; right: where its children do. On a phone the parent's words stand above it.
const WIDE = { width: 700, left: 180, right: 420, top: 10, letters: 44 };
const NARROW = { width: 380, left: 0, right: 118, top: 48, letters: 34 };
const BAR = 13,
  GAP = 14;
const LETTERS = "ABCDEFGH";

/** split: as the explorer gives it, with its flow. Shares are of the parent's firings. narrow: for a phone. */
export function flowPicture(split, narrow = false) {
  const { width, left, right, top: above, letters } = narrow ? NARROW : WIDE;
  const { flow, parent, children } = split;
  const parts = [
    ...children.map((child, i) => ({
      count: flow.alone[i],
      kind: `c${i % 5}`,
      name: `${LETTERS[i]}  ${child.sae} ${child.latent}`,
      tokens: child.top_tokens,
      note: "alone",
    })),
    { count: flow.two_or_more, kind: "rest", name: "two or more of them", note: "overlap" },
    { count: flow.none, kind: "none", name: "none of them", note: "not covered" },
  ];
  const total = flow.parent_firings || 1;
  const room = Math.max(170, 44 * parts.length);
  const height = above + room + GAP * (parts.length - 1) + 10;
  const sizes = parts.map(({ count }) => (room * count) / total);
  // thin ribbons still need room for their words
  const places = [];
  let y = above;
  for (const size of sizes) {
    places.push(y + Math.max(0, (30 - size) / 2));
    y += Math.max(size, 30) + GAP;
  }
  const full = Math.max(height, y);
  let from = above + (full - above - room) / 2;
  const top = from;
  const drawn = parts.map((part, i) => {
    const [y0, y1, size] = [from, places[i], sizes[i]];
    from += size;
    const middle = (left + BAR + right) / 2;
    const near = left + BAR;
    const upper = `M${near},${y0} C${middle},${y0} ${middle},${y1} ${right},${y1}`;
    const lower = `L${right},${y1 + size} C${middle},${y1 + size} ${middle},${y0 + size} ${near},${y0 + size} Z`;
    const tokens = (part.tokens || [])
      .slice(0, 4)
      .map((token) => shown(token).trim())
      .join(" · ");
    return svg(
      "g",
      { class: part.kind },
      svg("path", { class: "ribbon", d: `${upper} ${lower}` }),
      svg("rect", { class: "block", x: right, y: y1, width: BAR, height: Math.max(size, 1), rx: "1" }),
      svg(
        "text",
        { x: right + BAR + 10, y: y1 + size / 2 - (tokens ? 2 : -4) },
        `${narrow ? part.name.replace(/^(\w)  \S+ /, "$1  ") : part.name}  ${percent(part.count / total)}`,
        svg("tspan", { class: "small" }, `  ${number(part.count)} ${part.note}`),
      ),
      tokens ? svg("text", { class: "small", x: right + BAR + 10, y: y1 + size / 2 + 13 }, cut(tokens, letters)) : null,
    );
  });
  const tokens = (parent.top_tokens || [])
    .slice(0, 3)
    .map((token) => shown(token).trim())
    .join(" · ");
  const names = narrow
    ? [`${parent.sae} ${parent.latent}, ${number(total)} firings`, cut(tokens, 60)]
    : [`${parent.sae} ${parent.latent}`, cut(tokens, 26), `${number(total)} firings`];
  const said = parts.map((part) => `${part.name} ${percent(part.count / total)}`).join(", ");
  return svg(
    "svg",
    {
      class: "flow",
      viewBox: `0 0 ${width} ${full}`,
      role: "img",
      "aria-label": `Of ${number(total)} firings of ${parent.sae} ${parent.latent}: ${said}`,
    },
    drawn,
    svg(
      "g",
      { class: armClass(armOf(parent.sae)) },
      svg("rect", { class: "arm", x: left, y: top, width: BAR, height: room, rx: "1" }),
      names.map((name, i) =>
        svg(
          "text",
          {
            class: i ? "small" : null,
            x: narrow ? 0 : left - 10,
            y: (narrow ? 14 : full / 2 - 4) + 15 * i,
            "text-anchor": narrow ? "start" : "end",
          },
          name,
        ),
      ),
    ),
  );
}

function cut(text, letters) {
  return text.length > letters ? text.slice(0, letters - 1) + "…" : text;
}
