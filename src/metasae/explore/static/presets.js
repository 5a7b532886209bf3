// Lists of latents that are worth opening: how each is sorted, and from which firing rate on, as rare latents differ by chance.

const FIRINGS = 50;

const PRESETS = [
  { key: "splits", title: "Most split", sort: "split_score", desc: "1", why: "another arm divides their firings among several latents; the highest score first" },
  { key: "changed", title: "Most changed", sort: "match_cosine", desc: "0", frequent: true, why: "lowest cosine with their match in the other arm" },
  { key: "decomposable", title: "Most decomposable", sort: "meta_e", desc: "0", frequent: true, why: "the meta SAE rebuilds their decoder row with the smallest error" },
  { key: "together", title: "Firing together", sort: "nearest_phi", desc: "1", frequent: true, why: "highest phi with another latent of the same SAE" },
  { key: "often", title: "Most frequent", sort: "rate", desc: "1", why: "they fire on the most tokens" },
];

/** How a list is asked for by a preset. tokens: that were held out. */
export function stateOf({ sort, desc, frequent }, tokens) {
  return { sort, desc, min_rate: frequent && tokens ? String(Number((FIRINGS / tokens).toPrecision(2))) : "" };
}

/** The presets an SAE has numbers for. columns: of its list. */
export function presetsFor(columns) {
  const known = new Set(columns.filter(({ empty }) => !empty).map(({ key }) => key));
  return PRESETS.filter(({ sort }) => known.has(sort));
}

/** The first three presets, each with `of`: the SAE in which it is worth opening, null for none. */
export function presetsOf(run) {
  const base = run.baseline || "solo";
  const first = (wanted) => run.saes.find((sae) => wanted(sae))?.name ?? null;
  const of = {
    splits: first((sae) => sae.arm === base && sae.has_firings),
    changed: first((sae) => sae.arm !== base && sae.has_firings),
    decomposable: first((sae) => sae.has_meta && sae.has_firings && sae.arm !== "control"),
  };
  const several = new Set(run.saes.map(({ weights, name }) => weights ?? name)).size > 1;
  return PRESETS.slice(0, 3).map((preset) => ({ ...preset, of: several ? of[preset.key] : null }));
}
