// The answers of a static export: whole tables as files, filtered and sorted here as the server's store would.

import { json, kept, Missing } from "./data.js";

const BLOCK = 64;
// a character ends within so many tokens
const REACH = 3;
// latents of each SAE that a search shows
const FOUND = 20;
const index = () => kept("data/api/index.json");

async function stem(sae) {
  const { saes } = await index();
  if (!(sae in saes)) throw new Missing(`no SAE '${sae}'; known: ${Object.keys(saes).join(", ")}`);
  return saes[sae];
}

export const sweep = () => kept("data/api/sweep.json");
export const overview = () => kept("data/api/overview.json");

const tables = new Map();

/** All rows of an SAE, from its columns. */
async function rowsOf(sae) {
  if (!tables.has(sae)) {
    const table = json(`data/api/latents/${await stem(sae)}.json.gz`).then(({ columns, values, searched, n }) => {
      const keys = Object.keys(values);
      const rows = Array.from({ length: n }, (_, i) => Object.fromEntries(keys.map((key) => [key, values[key][i]])));
      // searched: of every latent the tokens it is searched by, each with how specific the latent is to it
      const tokens = searched.map((pairs) => pairs.map(([token, f1]) => ({ token, f1, start: folded(token) })));
      return { columns, rows, tokens };
    });
    tables.set(sae, table);
    table.catch(() => tables.delete(sae));
  }
  return tables.get(sae);
}

function folded(text) {
  return text.trim().toLowerCase();
}

/** Without accents, as the server's index of explanations has them. */
function words(text) {
  return text.normalize("NFD").replace(/\p{Mn}/gu, "").toLowerCase().match(/[\p{L}\p{N}]+/gu) || [];
}

/** How a search finds a latent: {where, text, specific}, by the larger number of explore/pages/search.py; null where it does not. */
function found(row, tokens, text) {
  const wanted = words(text);
  const last = wanted.at(-1);
  const explained = words(row.explanation || "");
  const has = last && wanted.slice(0, -1).every((word) => explained.includes(word)) && explained.some((word) => word.startsWith(last));
  const byWords = has ? { where: "explanation", text: row.explanation, specific: Math.min(1, wanted.length / explained.length) } : null;
  const start = folded(text);
  const byToken = tokens
    .filter((token) => start && token.start.startsWith(start))
    .map(({ token, f1, start: whole }) => ({ where: "token", text: token, specific: f1 * ([...start].length / [...whole].length) }))
    .reduce((best, entry) => (best && best.specific >= entry.specific ? best : entry), null);
  return byToken && (!byWords || byToken.specific >= byWords.specific) ? byToken : byWords;
}

/** The token that a search found a row by, where that is not among the few named. */
function beside(row, tokens, text) {
  const start = folded(text);
  const named = (row.top_tokens || []).map(folded);
  return named.some((token) => token.startsWith(start)) ? null : (tokens.find((token) => token.start.startsWith(start))?.token ?? null);
}

export async function latents(sae, { sort = "rate", desc = 1, search, min_rate, max_rate, label, dead, offset = 0, limit = 100 }) {
  const { columns, rows, tokens } = await rowsOf(sae);
  const kept = rows.filter(
    (row, i) =>
      (!search || found(row, tokens[i], search)) &&
      (!label || row.label === label) &&
      (dead || row.rate === null || row.rate > 0) &&
      (!min_rate || row.rate >= min_rate) &&
      (!max_rate || row.rate <= max_rate),
  );
  const sign = desc && desc !== "0" ? -1 : 1;
  const specific = new Map(sort === "specific" && search ? kept.map((row) => [row, found(row, tokens[row.latent], search).specific]) : []);
  kept.sort((a, b) => {
    const [x, y] = specific.size ? [specific.get(a), specific.get(b)] : [a[sort] ?? null, b[sort] ?? null];
    if (x === y) return a.latent - b.latent;
    if (x === null || y === null) return x === null ? 1 : -1;
    return sign * (x < y ? -1 : 1);
  });
  const first = Number(offset);
  const shown = kept.slice(first, first + Number(limit)).map((row) => (search ? { ...row, found: beside(row, tokens[row.latent], search) } : row));
  return { sae, total: kept.length, offset: first, columns, rows: shown };
}

export async function briefs(sae, ids) {
  const { rows } = await rowsOf(sae);
  const wanted = new Set(ids);
  return Object.fromEntries(rows.filter((row) => wanted.has(row.latent)).map((row) => [row.latent, row]));
}

export async function latent(sae, number) {
  const file = await stem(sae);
  const missing = () => new Missing(`no latent ${number} in ${sae}`);
  if (!/^\d+$/.test(String(number))) throw missing();
  const block = await kept(`data/api/latent/${file}/${Math.floor(number / BLOCK)}.json.gz`).catch((error) => {
    throw error instanceof Missing ? missing() : error;
  });
  if (!(number in block)) throw missing();
  const page = block[number];
  const near = page.neighbours;
  const filled = async (kinds) => Object.fromEntries(await Promise.all(Object.entries(kinds).map(async ([kind, entries]) => [kind, await withWords(entries)])));
  const { other = {}, ...own } = near;
  const far = Object.fromEntries(await Promise.all(Object.entries(other).map(async ([name, kinds]) => [name, await filled(kinds)])));
  const meta = await Promise.all(page.meta.map(async (entry) => ({ ...entry, siblings: await withWords(entry.siblings, sae) })));
  return { ...page, neighbours: { ...(await filled(own)), other: far }, meta, windows: await withText(sae, page.windows) };
}

/** What the files of latents leave out, as the tables have it: the tokens and the explanation by which a latent is known. */
function withWords(entries, sae) {
  return Promise.all(
    entries.map(async (entry) => {
      const { top_tokens, explanation } = (await rowsOf(entry.sae ?? sae)).rows[entry.latent];
      return { ...entry, top_tokens, explanation };
    }),
  );
}

/** Windows with the tokens that stand there, from the chunks of the text; those that have their tokens stay. */
async function withText(sae, windows) {
  const { texts, chunk } = await index();
  if (!(sae in texts)) return windows;
  const token = async (at) => {
    const { pieces, names } = await kept(`data/api/text/${texts[sae]}/${Math.floor(at / chunk)}.json.gz`);
    return { piece: pieces[at % chunk], name: names[at % chunk] };
  };
  return Promise.all(
    windows.map(async (entry) => {
      const length = (entry.values ?? entry.parent).length;
      const told = await Promise.all(Array.from({ length }, (_, i) => token(entry.place + i)));
      const tokens = told.map(({ piece }) => piece);
      const names = Object.fromEntries(told.map(({ name }, i) => [i, name]).filter(([, name]) => name !== undefined));
      // a character that the window's end cuts stands with the last token, as on the server
      for (let i = 0; i < REACH && tokens[length - 1] === "" && names[length - 1]; i++) {
        const next = await token(entry.place + length + i).catch(() => null);
        if (next?.piece) tokens[length - 1] = next.piece;
      }
      return { ...entry, tokens, names };
    }),
  );
}

function splitPasses(row, search, min_score, label) {
  if ((min_score && row.score < Number(min_score)) || (label && row.label !== label)) return false;
  const start = (search || "").trim().toLowerCase();
  return (
    !start ||
    [row.parent, ...row.children].some(
      (side) => String(side.latent) === start || (side.top_tokens || []).some((token) => token.trim().toLowerCase().startsWith(start)),
    )
  );
}

export async function splits({ pair, kind = "splits", offset = 0, limit = 50, search, min_score, label, kept: withKept }) {
  const known = (await index()).pairs[kind] || {};
  if (pair && !(pair in known)) throw new Missing(`no pair '${pair}'; known: ${Object.keys(known).join(", ")}`);
  const answer = await kept(`data/api/splits/${known[pair] ?? `${kind}-0`}.json.gz`);
  const first = Number(offset);
  const passing = answer.rows.filter((row) => splitPasses(row, search, min_score, label));
  const rows = passing.filter((row) => withKept || !row.kept);
  const n_kept = passing.filter((row) => row.kept).length;
  return { ...answer, total: rows.length, n_kept, offset: first, rows: rows.slice(first, first + Number(limit)) };
}

export async function split(id) {
  const { splits: blocks, most } = await index();
  if (!(id in blocks)) throw new Missing(`no split '${id}' among the best ${most} of each pair, which this static copy has`);
  const page = (await kept(`data/api/split/${blocks[id]}.json.gz`))[id];
  return { ...page, windows: await withText(page.parent.sae, page.windows) };
}

/** As the server answers: of each SAE the latents that are most specific to the text. */
export async function search(text) {
  const groups = [];
  for (const { name } of (await overview()).saes) {
    const table = await rowsOf(name);
    const matches = table.rows
      .map((row, i) => ({ row, how: found(row, table.tokens[i], text) }))
      .filter(({ how }) => how)
      .sort((a, b) => b.how.specific - a.how.specific || a.row.latent - b.row.latent);
    const rows = matches.slice(0, FOUND).map(({ row, how }) => ({ ...row, ...how }));
    if (matches.length) groups.push({ sae: name, total: matches.length, rows });
  }
  return { groups };
}

/** Two latents side by side; how often both fire is not in the files, which hold no firings. */
export async function compare(a, b) {
  const [left, right] = await Promise.all(
    [a, b].map((text) => {
      const cut = text.lastIndexOf(":");
      return latent(text.slice(0, cut), text.slice(cut + 1));
    }),
  );
  const of = (list) => (list || []).find((entry) => entry.sae === right.sae && entry.latent === right.latent)?.value ?? null;
  const near = left.sae === right.sae ? left.neighbours : left.neighbours?.other?.[right.sae];
  const told = Object.fromEntries(["phi", "cosine", "encoder_cosine"].map((key) => [key, of(near?.[key])]));
  return {
    a: left,
    b: right,
    ...told,
    n_both: null,
    n_a: left.scalars.firings,
    n_b: right.scalars.firings,
    only_a: null,
    only_b: null,
    both: null,
  };
}
