// Where the pages' numbers come from: the server's API or, in a static export, files beside the page. Both answer alike.

import * as files from "./files.js";

export const STATIC = document.querySelector('meta[name="metasae-static"]') !== null;

/** The pages show a sweep, not a run. */
export const SWEEP = document.querySelector('meta[name="metasae-sweep"]') !== null;

const KEPT = 60;
const answers = new Map();

/** A page asks for something that is not there; the message is one line. */
export class Missing extends Error {}

export async function json(path, options) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("the explorer does not answer; is it still running?");
  }
  const body = await bodyOf(reply).catch(() => null);
  if (!reply.ok) {
    const line = body?.error || `${path}: ${reply.status} ${reply.statusText}`;
    throw reply.status === 404 ? new Missing(line) : new Error(line);
  }
  if (body === null) throw new Error(`${path} is not JSON`);
  return body;
}

/** JSON, or in a static export JSON in gzip, which some hosts unpack by themselves. */
async function bodyOf(reply) {
  if (!STATIC) return reply.json();
  const bytes = new Uint8Array(await reply.arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return JSON.parse(new TextDecoder().decode(bytes));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

/** The last answers are kept, so that going back is at once. */
export function kept(path) {
  if (!answers.has(path)) {
    const answer = json(path);
    answers.set(path, answer);
    answer.catch(() => answers.delete(path));
    if (answers.size > KEPT) answers.delete(answers.keys().next().value);
  }
  return answers.get(path);
}

function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? "?" + new URLSearchParams(given) : "";
}

function post(path, body) {
  return json(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
}

const name = encodeURIComponent;

const server = {
  sweep: () => kept("api/sweep"),
  overview: () => kept("api/overview"),
  latents: (sae, filters) => kept(`api/latents/${name(sae)}${query(filters)}`),
  latent: (sae, latent) => kept(`api/latent/${name(sae)}/${latent}`),
  briefs: (sae, ids) => kept(`api/briefs/${name(sae)}${query({ ids: ids.join(",") })}`),
  splits: (filters) => kept(`api/splits${query(filters)}`),
  split: (id) => kept(`api/split/${name(id)}`),
  compare: (a, b) => kept(`api/compare${query({ a, b })}`),
  matches: (sae, other, ids) => kept(`api/matches/${name(sae)}/${name(other)}${query({ ids: ids.join(",") })}`),
  document: (sae, latent, place) => kept(`api/document/${name(sae)}/${latent}/${place}`),
  search: (text) => kept(`api/search${query({ q: text })}`),
  async label(target, label, note) {
    await post("api/label", { target, label, note });
    answers.clear();
  },
  tryText: (text) => post("api/try", { text }),
  steer: (sae, latent, text, value) => post("api/steer", { sae, latent, text, value }),
};

export const data = STATIC ? files : server;
