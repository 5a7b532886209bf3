// One split: the flow of firings from parent to children, the same windows seen by all of them, and what tells them apart.

import { data } from "../data.js";
import { already, livesOn } from "../counterparts.js";
import { apart, armClass, armOf, card, chips, fixed, h, latentLink, number, percent, shown, table, term } from "../dom.js";
import { flowPicture } from "../flow.js";
import { labelButtons } from "../labels.js";
import { nameOf, shade, tokens } from "../windows.js";

const LETTERS = "ABCDEFGH";
const LABELS = ["sense split", "duplicate", "absorption", "junk", "unsure"];

export async function page({ parts }) {
  const split = await data.split(parts[0] ?? "");
  const merge = split.kind.startsWith("merge");
  const node = h(
    "div",
    { class: `page ${armClass(armOf(split.parent.sae))}` },
    head(split, merge),
    h(
      "div",
      { class: "columns aside" },
      h("div", { class: "stack" }, flow(split), windows(split)),
      h("div", { class: "stack" }, lifts(split), squares(split), siblings(split)),
    ),
  );
  const name = `${merge ? "Merge into" : "Split of"} ${split.parent.sae} ${split.parent.latent}`;
  return { title: name, menu: merge ? "merges" : "splits", node };
}

function mark(i) {
  return h("span", { class: `swatch c${i % 5}`, "aria-hidden": "true" }, LETTERS[i]);
}

function head(split, merge) {
  const tile = (label, value, meaning) => h("div", {}, h("dt", {}, term(label, meaning)), h("dd", {}, value));
  return h(
    "section",
    { class: "card" },
    h(
      "div",
      { class: "title" },
      h("h1", {}, merge ? "Merge into " : "Split of ", latentLink(split.parent.sae, split.parent.latent)),
      chips(split.parent.top_tokens),
      h("span", { class: "soft" }, merge ? "from" : "into"),
      split.children.map((child, i) =>
        h("span", { class: "split-line" }, mark(i), latentLink(child.sae, child.latent), chips(child.top_tokens, 4)),
      ),
    ),
    h("p", {}, livesOn(split.parent, merge)),
    h(
      "div",
      { class: "children" },
      split.children.map((child, i) => h("div", {}, mark(i), already(child, merge))),
    ),
    h(
      "dl",
      { class: "tiles" },
      tile(
        "score",
        fixed(split.score),
        "coverage × (1 − overlap) × the smallest share × (1 − phi of the parent with its counterpart) × (1 − the largest phi of a child with its counterpart). The counterpart is the nearest other latent, or the one that is the same. An even split into two scores at most 1/2.",
      ),
      tile("covered", percent(split.coverage), "share of the parent's firings on which at least one child fires"),
      tile("overlap", percent(split.overlap), "share of the parent's firings on which two or more children fire"),
      tile("parent's firings", number(split.firings), "held-out tokens"),
      split.base
        ? tile(
            "as high between two seeds of solo",
            `${split.base.whole ? "" : "at least "}${number(split.base.as_good)} of ${number(split.base.n_parents)}`,
            `latents with a score at least as high in ${split.base.pair}, which has no penalty; it is one pair of SAEs, so there is no interval`,
          )
        : null,
      split.children.map((child, i) =>
        split.phi
          ? tile(`${LETTERS[i]}: phi with parent`, fixed(split.phi[0][i + 1]), "over all held-out tokens")
          : tile(`${LETTERS[i]}: phi with parent`, fixed(child.phi), "on the half of the documents on which the children were chosen, so it is too high"),
      ),
      split.children.map((child, i) =>
        typeof child.firings === "number"
          ? tile(
              `${LETTERS[i]}: fires without the parent`,
              child.firings ? percent(1 - child.with_parent / child.firings) : "–",
              `${number(child.firings - child.with_parent)} of the child's ${number(child.firings)} firings, over all held-out tokens`,
            )
          : null,
      ),
    ),
    h(
      "p",
      { class: "note" },
      split.phi
        ? "Score, covered, overlap, the parent's firings and the counterparts are measured on the half of the held-out documents on which the children were not chosen. Phi, firings without the parent and everything below are measured on all of them."
        : "Score, covered, overlap, the parent's firings and the counterparts are measured on the half of the held-out documents on which the children were not chosen.",
    ),
    labelButtons({ kind: "split", id: split.id }, split.label, split.labels, LABELS),
  );
}

function flow(split) {
  if (!split.flow) return null;
  return card(
    "Where the firings go",
    "all held-out tokens on which the parent fires, divided by the children that fire there",
    flowPicture(split, matchMedia("(max-width: 640px)").matches),
  );
}

/** Windows around the parent's firings, coloured by the child that fires, with a choice of which. */
function windows(split) {
  if (!split.windows?.length) return card("Windows", null, h("p", { class: "empty" }, "No firings were kept, so there are no windows."));
  const list = h("ol", { class: "list", "aria-label": "Windows" });
  const most = split.children.map((_, c) => Math.max(1e-9, ...split.windows.flatMap((entry) => entry.children[c])));
  let wanted = null;
  const groups = [[null, "all"], ...split.children.map((_, i) => [i, LETTERS[i]]), ["none", "none"]];
  const fires = (entry, group) => group === null || (group === "none" ? !entry.fires.length : entry.fires.includes(group));
  const buttons = groups.map(([group, label]) =>
    h(
      "button",
      { type: "button", "aria-pressed": String(group === null), onclick: () => show(group) },
      label,
      ` ${split.windows.filter((entry) => fires(entry, group)).length}`,
    ),
  );
  function show(group) {
    wanted = group;
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(groups[i][0] === wanted)));
    list.replaceChildren(...split.windows.filter((entry) => fires(entry, wanted)).map((entry) => aligned(split, entry, most)));
  }
  show(null);
  return card(
    "Parent and children on the same text",
    "underlined: the parent fires; shaded: the strongest child, as a share of its largest activation in these windows",
    h(
      "div",
      { class: "labels", role: "group", "aria-label": "Windows in which this child fires" },
      h("span", { class: "note" }, "fires at the parent's peak:"),
      buttons,
    ),
    list,
  );
}

function aligned(split, entry, most) {
  const strongest = entry.tokens.map((_, t) => {
    let best = -1;
    split.children.forEach((_, c) => {
      if (entry.children[c][t] > 0 && (best < 0 || entry.children[c][t] / most[c] > entry.children[best][t] / most[best])) best = c;
    });
    return best;
  });
  const line = tokens(
    entry.tokens,
    (t) =>
      [
        strongest[t] >= 0 ? `c${strongest[t] % 5} ${shade(entry.children[strongest[t]][t], most[strongest[t]])}` : "",
        entry.parent[t] > 0 ? "parent" : "",
        t === entry.peak ? "peak" : "",
      ]
        .filter(Boolean)
        .join(" "),
    (t) =>
      [
        `${shown(nameOf(entry, t)).trim() || "space"}`,
        `parent: ${entry.parent[t] > 0 ? number(entry.parent[t]) : "silent"}`,
        ...split.children.map(
          (child, c) => `${LETTERS[c]} (${child.latent}): ${entry.children[c][t] > 0 ? number(entry.children[c][t]) : "silent"}`,
        ),
      ].join("\n"),
  );
  return h(
    "li",
    { class: "window item", tabindex: "-1" },
    h(
      "span",
      { class: "value", title: `document ${entry.document}, from token ${entry.start}` },
      entry.fires.length ? entry.fires.map(mark) : h("span", { class: "swatch none-mark", title: "no child fires at the peak" }, "–"),
    ),
    line,
  );
}

/** Which tokens each child favours; told apart children light up different rows. */
function lifts(split) {
  const found = split.tokens;
  if (!found?.tokens?.length) return null;
  const most = Math.max(1, ...found.lift.flat().filter((value) => typeof value === "number"));
  const named = apart(found.tokens);
  const rows = named.map((token, t) => [
    token,
    ...split.children.map((_, c) => {
      // lift and counts come per child, per token
      const value = found.lift[c]?.[t],
        count = found.counts?.[c]?.[t];
      const cell = h("span", { class: `hot c${c % 5}`, title: count === undefined ? null : `${number(count)} firings` }, number(value, 2));
      cell.style.setProperty("--heat", `var(--shade-${c % 5})`);
      cell.style.setProperty("--p", `${value > 0 ? Math.round((75 * Math.log1p(value)) / Math.log1p(most)) : 0}%`);
      return cell;
    }),
  ]);
  return card(
    "Token by child",
    "how many times as likely the token is where parent and child fire as where the parent fires",
    table([{ label: "token", text: true }, ...split.children.map((child, i) => ({ label: `${LETTERS[i]} ${child.latent}` }))], rows, {
      label: "Lift of each token in each child",
    }),
  );
}

function squares(split) {
  const names = [`parent ${split.parent.latent}`, ...split.children.map((child, i) => `${LETTERS[i]} ${child.latent}`)];
  const square = (values) =>
    table(
      [{ label: "", text: true }, ...names.map((label) => ({ label }))],
      values.map((row, i) => [names[i], ...row.map((value, j) => (i === j ? h("span", { class: "soft" }, "1") : fixed(value)))]),
      { label: "Parent and children, each with each" },
    );
  if (!split.cosine && !split.phi) return null;
  return card(
    "Parent and children",
    "cosines of their decoder rows, and correlations (phi) of their firing on the held-out tokens",
    split.cosine ? [h("h3", {}, "decoder cosine"), square(split.cosine)] : null,
    split.phi ? [h("h3", {}, "phi"), square(split.phi)] : null,
  );
}

function siblings(split) {
  if (!split.siblings_meta?.length) return null;
  return card(
    "Meta-latents that the children share",
    null,
    h(
      "ul",
      { class: "list" },
      split.siblings_meta.map((entry) =>
        h(
          "li",
          { class: "item", tabindex: "-1" },
          "meta-latent ",
          h("span", { class: "id" }, String(entry.meta_latent)),
          h(
            "div",
            { class: "children" },
            entry.children.map((child) =>
              h(
                "div",
                {},
                latentLink(child.sae || split.children[0].sae, child.latent, false),
                h("span", { class: "soft" }, `weight ${number(child.weight)}`),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}
