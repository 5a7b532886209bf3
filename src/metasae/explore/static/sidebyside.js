// What fires in a text, arm beside arm: latents that match stand on one line, and lines that differ are known.

import { data } from "./data.js";

// Of two latents of two arms: the cosine of their decoder rows from which on they count as one latent.
const SAME = 0.5;
const AT_ONCE = 400;

/**
 * The arms of a seed that are shown, the baseline first, and those left out as they have another's weights.
 * saes: the overview's, of this seed. -> {shown: [name], alike: [[name, the one it is like]]}
 */
export function armsOf(saes, baseline) {
  const inOrder = [...saes].sort((a, b) => (b.arm === baseline) - (a.arm === baseline));
  const shown = [];
  const alike = [];
  for (const sae of inOrder) {
    const same = sae.weights && shown.find(({ weights }) => weights === sae.weights);
    if (same) alike.push([sae.name, same.name]);
    else shown.push(sae);
  }
  return { shown: shown.map(({ name }) => name), alike };
}

/** Arm -> its latent -> the matching latent of the first arm, and back. fired: SAE -> token -> [latent, value]. */
export async function pairedLatents([base, ...others], fired) {
  const paired = {};
  for (const arm of others) {
    const [back, there] = await Promise.all([matched(arm, base, fired[arm]), matched(base, arm, fired[base])]);
    paired[arm] = { toBase: back, fromBase: there };
  }
  return paired;
}

async function matched(sae, other, tokens) {
  const ids = [...new Set(tokens.flatMap((fires) => fires.map(([id]) => id)))];
  const parts = Array.from({ length: Math.ceil(ids.length / AT_ONCE) }, (_, i) => ids.slice(i * AT_ONCE, (i + 1) * AT_ONCE));
  const answers = await Promise.all(parts.map((part) => data.matches(sae, other, part)));
  const close = answers.flatMap((answer) => Object.entries(answer)).filter(([, { cosine }]) => cosine >= SAME);
  return new Map(close.map(([id, { latent }]) => [Number(id), latent]));
}

/**
 * Lines of latents, the strongest first. values: arm -> Map of latent -> value, of those that fire. -> [{cells, most, differs}]
 * cells: one an arm, {id, value}, value 0 for a match that is silent, null where the arm has no such latent.
 */
export function linesOf([base, ...others], values, paired) {
  const lines = [];
  const used = Object.fromEntries(others.map((arm) => [arm, new Set()]));
  const cell = (arm, id) => (id === undefined ? null : { id, value: values[arm].get(id) || 0 });
  const line = (first, own = {}) => [
    cell(base, first),
    ...others.map((arm) => {
      const id = own[arm] ?? (first === undefined ? undefined : paired[arm].fromBase.get(first));
      if (id !== undefined) used[arm].add(id);
      return cell(arm, id);
    }),
  ];
  for (const id of values[base].keys()) lines.push(line(id));
  for (const arm of others)
    for (const id of values[arm].keys()) if (!used[arm].has(id)) lines.push(line(paired[arm].toBase.get(id), { [arm]: id }));
  return lines
    .map((cells) => {
      const on = cells.map((entry) => (entry?.value || 0) > 0);
      return { cells, most: Math.max(...cells.map((entry) => entry?.value || 0)), differs: new Set(on).size > 1 };
    })
    .sort((a, b) => b.most - a.most);
}

/** arm -> Map of latent -> value: at one token, or the largest in the text where token is null. */
export function valuesAt(arms, fired, token) {
  return Object.fromEntries(
    arms.map((arm) => {
      const most = new Map();
      for (const fires of token === null ? fired[arm] : [fired[arm][token]])
        for (const [id, value] of fires) most.set(id, Math.max(value, most.get(id) || 0));
      return [arm, most];
    }),
  );
}
