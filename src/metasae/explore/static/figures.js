// The overview's figures. run: the overview as the store gives it; many: its conditions in words.

import { armColour, chart, colour, DASHES, redraw, steps, SYMBOLS } from "./charts.js";
import { armClass, card, h, number, percent, svg, table } from "./dom.js";

const AXES = [
  ["recovery_f1", "spike-ins recovered, F1", "higher is better"],
  ["concept_f1", "concept F1", "higher is better"],
  ["mean_abs_phi", "mean |phi|", ""],
  ["nearest_phi", "nearest-partner phi", ""],
  ["meta_ve_excess", "meta VE excess", ""],
];
const CURVES = [
  ["fvu", "FVU (share of variance)"],
  ["penalty", "penalty (mean p)"],
  ["aux", "auxiliary loss"],
];
// of the picture of pairs; hardly any pair lies outside
const PHI_EDGES = Array.from({ length: 46 }, (_, i) => Math.round(100 * (-0.3 + 0.02 * i)) / 100);

function bySae(run, key) {
  return run.saes.filter((sae) => run[key]?.[sae.name]).map((sae) => ({ ...sae, entry: run[key][sae.name] }));
}

const empty = (title, why) => card(title, null, h("p", { class: "empty" }, why));

export function pareto(run, many) {
  const points = (run.pareto || []).filter((point) => point.fvu !== null);
  if (!points.length) return empty("Measures against FVU", "no SAE is measured yet");
  const known = AXES.filter(([key]) => points.some((point) => point[key] !== null && point[key] !== undefined));
  if (!known.length) return empty("Measures against FVU", "no measure of known features or of firing yet");
  const choice = h(
    "select",
    { "aria-label": "Measure on the vertical axis", onchange: () => redraw(place) },
    known.map(([key, label]) => h("option", { value: key }, label)),
  );
  const place = chart(
    "Every SAE as a mark: FVU on the horizontal axis, the chosen measure on the vertical axis",
    () => {
      // the baseline first and larger: an arm that equals it is drawn over it
      const base = run.baseline || "solo";
      const arms = [...new Set(points.map((point) => point.arm))].sort((a, b) => (b === base) - (a === base));
      const [key, label, better] = known.find(([key]) => key === choice.value) || known[0];
      return {
        traces: arms.map((arm) => {
          const mine = points.filter((point) => point.arm === arm);
          return {
            type: "scatter",
            mode: "markers",
            name: arm,
            x: mine.map((p) => p.fvu),
            y: mine.map((p) => p[key]),
            text: mine.map((p) => p.name),
            marker: { size: arm === base ? 17 : 9, color: armColour(arm), symbol: SYMBOLS[arm] || "x" },
            hovertemplate: "%{text}<br>FVU %{x:.4f}<br>" + label + " %{y:.4g}<extra></extra>",
          };
        }),
        layout: {
          showlegend: true,
          xaxis: { title: "FVU (share of variance; lower is better)" },
          yaxis: { title: better ? `${label} (${better})` : label },
        },
      };
    },
  );
  return card("Measures against FVU", `one mark per SAE; ${many}`, choice, place);
}

/** A phi histogram in even bins, as in the report: its own bins, even in log |phi|, are cut where one of ours ends. */
function even({ edges, counts }) {
  const below = [0];
  for (const count of counts) below.push(below[below.length - 1] + count);
  const upTo = (phi) => {
    const i = Math.min(Math.max(edges.findIndex((edge) => edge > phi) - 1, 0), counts.length - 1);
    return below[i] + (counts[i] * (phi - edges[i])) / (edges[i + 1] - edges[i]);
  };
  return { edges: PHI_EDGES, counts: PHI_EDGES.slice(1).map((edge, i) => upTo(edge) - upTo(PHI_EDGES[i])) };
}

function mean(lists) {
  return lists[0].map((_, i) => lists.reduce((sum, list) => sum + list[i], 0) / lists.length);
}

export function phi(run, many) {
  const title = "Which pairs of latents become more or fewer";
  const found = bySae(run, "phi_histogram").map((sae) => ({ ...sae, ...even(sae.entry) }));
  const base = run.baseline || "solo";
  const solo = new Map(found.filter((sae) => sae.arm === base).map((sae) => [sae.seed, sae]));
  const arms = [...new Set(found.filter((sae) => sae.arm !== base && solo.has(sae.seed)).map((sae) => sae.arm))];
  if (!arms.length) return empty(title, `needs ${base} and another arm with the same seed`);
  const place = chart(`Pairs of latents by phi: each arm's count minus ${base}'s`, () => ({
    traces: arms.map((arm) => {
      const mine = found.filter((sae) => sae.arm === arm && solo.has(sae.seed));
      const change = mean(mine.map((sae) => sae.counts.map((count, i) => count - solo.get(sae.seed).counts[i])));
      return {
        type: "scatter",
        mode: "lines",
        name: `${arm} − ${base}`,
        ...steps(mine[0].edges, change),
        line: { color: armColour(arm), width: 1.8, dash: DASHES[arm] || "dot" },
        hovertemplate: "phi %{x:.2f}<br>%{y:,.0f} pairs<extra></extra>",
      };
    }),
    layout: {
      showlegend: true,
      xaxis: { title: "phi of a pair of latents", range: [-0.3, 0.6] },
      yaxis: { title: "change in number of pairs", tickformat: "~s" },
    },
  }));
  return card(title, `mean over paired seeds; left of 0 latents avoid each other, right of 0 they fire together. This describes the arms and does not say which is more atomic. ${many}`, place);
}

const PARTS = { all: "", same_token: ", same token silent", random: ", random silent text", neighbour: ", neighbour's text" };

/** Which scores become more common, and the mean differences. null for a run without auto-interp. */
export function scores(run) {
  const found = (run.scores || []).filter((entry) => Object.keys(entry.changes).length);
  if (!found.length) return null;
  let entry = found[0];
  const name = ({ score, part }) => `${score}${PARTS[part] ?? `, ${part}`}`;
  const conditions = () => {
    const counts = Object.values(entry.n);
    const [low, high] = [Math.min(...counts), Math.max(...counts)];
    return `${low === high ? number(low) : `${number(low)} to ${number(high)}`} random latents per SAE${entry.judge ? `, read by ${entry.judge}` : ""}`;
  };
  const place = chart("Shares of latents by their score: each arm's less the baseline's, and one seed of the baseline less another", () => ({
    traces: [
      ...entry.null.map(({ of, change }, i) => ({
        type: "scatter",
        mode: "lines",
        name: `${entry.baseline} − ${entry.baseline}, other seed`,
        showlegend: !i,
        ...steps(entry.edges, change),
        line: { color: colour("--rest"), width: 1.3 },
        hovertemplate: `${of.join(" − ")}<br>score %{x:.3f}<br>%{y:.2%} of the latents<extra></extra>`,
      })),
      ...Object.entries(entry.changes).map(([arm, change]) => ({
        type: "scatter",
        mode: "lines",
        name: `${arm} − ${entry.baseline}`,
        ...steps(entry.edges, change),
        line: { color: armColour(arm), width: 2, dash: DASHES[arm] || "dot" },
        hovertemplate: "score %{x:.3f}<br>%{y:.2%} of the latents<extra></extra>",
      })),
    ],
    layout: {
      showlegend: true,
      xaxis: { title: `${name(entry)} (a latent's score)` },
      yaxis: { title: "change of the share of latents", tickformat: ".1%" },
    },
  }));
  const paired = withinPairs(() => entry);
  const means = h("div", {});
  const showRest = () => {
    means.classList.toggle("across", paired.show());
    means.replaceChildren(meanDifferences(entry));
  };
  showRest();
  const note = h("p", { class: "note" }, conditions());
  const choice = h(
    "select",
    {
      "aria-label": "Score",
      onchange: () => {
        entry = found[choice.selectedIndex];
        note.textContent = conditions();
        showRest();
        redraw(place);
      },
    },
    found.map((each) => h("option", {}, name(each))),
  );
  return card(
    "Which scores become more common",
    "random latents of each arm; grey: the difference between two seeds of the baseline, which is chance",
    h("div", { class: "title" }, choice, note),
    h("div", { class: "columns" }, place, paired.node, means),
    ...judgesSay(run.judges || []),
  );
}

/** What each judge's numbers say of the judge: whether it can tell, and how often it agrees with itself. */
export function judgesSay(judges) {
  return judges.map(({ line }) => h("p", { class: "note" }, line));
}

/** The differences of matched latents; mirrored about 0 they are what there would be to see if neither arm were better. show: false without pairs. */
function withinPairs(entryNow) {
  const note = h("p", { class: "note" });
  const arms = () => Object.entries(entryNow().paired || {});
  const line = (edges, share, rest) => ({ type: "scatter", mode: "lines", ...steps(edges, share), ...rest });
  const place = chart("Shares of pairs of matched latents by the difference of their scores", () => ({
    traces: [
      ...arms().map(([, { edges, mirrored }], i) =>
        line(edges, mirrored, { name: "mirrored about 0", showlegend: !i, line: { color: colour("--rest"), width: 1.3 }, hoverinfo: "skip" }),
      ),
      ...arms().map(([arm, { edges, share }]) =>
        line(edges, share, {
          name: `${arm} − ${entryNow().baseline}`,
          line: { color: armColour(arm), width: 2, dash: DASHES[arm] || "dot" },
          hovertemplate: "difference %{x:+.3f}<br>%{y:.1%} of the pairs<extra></extra>",
        }),
      ),
    ],
    layout: {
      showlegend: true,
      xaxis: { title: "score of a latent minus that of its match" },
      yaxis: { title: "share of pairs", tickformat: ".0%", rangemode: "tozero" },
    },
  }));
  const node = h("div", {}, place, note);
  const told = ([arm, { n, higher, tied }]) => `${arm} higher in ${percent(higher / n)} of ${number(n)} pairs, tied in ${percent(tied / n)}`;
  const show = () => {
    const some = arms().length > 0;
    node.hidden = !some;
    note.textContent = arms().map(told).join("; ");
    if (some) redraw(place);
    return some;
  };
  return { node, show };
}

/** Points and intervals about 0; one over two seeds may run out of the frame. */
function meanDifferences({ rows }) {
  const ends = rows.flatMap((row) => [2 * Math.abs(row.difference), ...(row.kind === "seeds" ? [] : (row.ci95 || []).map(Math.abs))]);
  const reach = 1.1 * Math.max(...ends) || 1;
  const x = (value) => 60 + 56 * Math.max(-1.06, Math.min(1.06, value / reach));
  const signed = (value) => (value > 0 ? "+" : "") + number(value, 2);
  const mark = ({ difference, ci95, kind, arm }) =>
    svg(
      "svg",
      { class: `forest narrow ${kind === "null" ? "chance" : armClass(arm)}`, viewBox: "0 0 120 18", "aria-hidden": "true" },
      svg("line", { class: "zero", x1: "60", x2: "60", y1: "0", y2: "18" }),
      ci95 ? svg("line", { x1: x(ci95[0]), x2: x(ci95[1]), y1: "9", y2: "9" }) : null,
      svg("circle", { cx: x(difference), cy: "9", r: "3.6", class: ci95 && (ci95[0] > 0 || ci95[1] < 0) ? "clear" : "" }),
    );
  const told = ({ difference, ci95 }) => [signed(difference), ci95 ? h("span", { class: "ends" }, `[${ci95.map(signed).join(", ")}]`) : null];
  const columns = [{ label: "difference of the mean score", text: true }, { label: "95% interval" }, { label: "" }, { label: "of" }];
  return table(
    columns,
    rows.map((row) => [row.what, told(row), mark(row), `${number(row.n)} ${row.unit}`]),
    { label: "Differences of the mean score" },
  );
}

export function rates(run, many) {
  const found = bySae(run, "rates");
  if (!found.length) return empty("How often latents fire", "no rates measured yet");
  const arms = [...new Set(found.map((sae) => sae.arm))];
  const place = chart("Live latents by firing rate, one line per arm", () => {
    const used = found.flatMap((sae) =>
      sae.entry.counts.flatMap((count, i) => (count ? [sae.entry.edges[i], sae.entry.edges[i + 1]] : [])),
    );
    return {
      traces: arms.map((arm) => {
        const mine = found.filter((sae) => sae.arm === arm);
        const { edges } = mine[0].entry;
        const line = steps(
          edges.map((edge) => 10 ** edge),
          mean(mine.map((sae) => sae.entry.counts)),
        );
        return {
          type: "scatter",
          mode: "lines",
          name: arm,
          ...line,
          line: { color: armColour(arm), width: arm === "solo" ? 3 : 1.6, dash: DASHES[arm] || "dot" },
          hovertemplate: "%{x:.2~%} of tokens<br>%{y:.0f} latents<extra></extra>",
        };
      }),
      layout: {
        showlegend: true,
        xaxis: {
          title: "firing rate (share of tokens)",
          type: "log",
          dtick: 1,
          tickformat: "~%",
          range: used.length ? [Math.min(...used) - 0.2, Math.max(...used) + 0.2] : undefined,
        },
        yaxis: { title: "live latents (mean over seeds)" },
      },
    };
  });
  return card("How often latents fire", `ten bins per factor of ten; ${many}`, place);
}

export function training(run) {
  const found = bySae(run, "training").filter((sae) => sae.entry.length);
  const known = CURVES.filter(([key]) => found.some((sae) => sae.entry.some((row) => row[key])));
  if (!known.length) return empty("Training", "no training curves in this run");
  const choice = h(
    "select",
    { "aria-label": "Curve", onchange: () => redraw(place) },
    known.map(([key, label]) => h("option", { value: key }, label)),
  );
  const place = chart("Training curves, one line per SAE", () => {
    const [key, label, better] = known.find(([key]) => key === choice.value) || known[0];
    const named = new Set();
    const drawn = found
      .map((sae) => ({ sae, rows: sae.entry.filter((row) => row[key] !== null && row[key] !== undefined) }))
      .filter(({ rows }) => rows.some((row) => row[key]));
    const heights = drawn.flatMap(({ rows }) => rows.map((row) => row[key]));
    const spread = key !== "penalty" && Math.min(...heights) > 0 && Math.max(...heights) > 3 * Math.min(...heights);
    return {
      traces: drawn.map(({ sae, rows }) => {
        const first = !named.has(sae.arm);
        named.add(sae.arm);
        return {
          type: "scatter",
          mode: "lines",
          name: sae.arm,
          showlegend: first,
          x: rows.map((row) => row.tokens),
          y: rows.map((row) => row[key]),
          line: { color: armColour(sae.arm), width: 1.3, dash: DASHES[sae.arm] || "dot" },
          hovertemplate: `${sae.name}<br>%{x:.3s} tokens<br>%{y:.4f}<extra></extra>`,
        };
      }),
      layout: {
        showlegend: true,
        xaxis: { title: "training tokens", tickformat: "~s" },
        yaxis: { title: label, type: spread ? "log" : "linear", dtick: spread ? "D2" : undefined },
      },
    };
  });
  return card("Training", "one line per SAE", choice, place);
}
