// The frame round the pages: hash routes, keys, the theme, search. A page is a function (parts, query) -> {title, node, ...}.

import { data, STATIC, SWEEP } from "./data.js";
import { add, h, say } from "./dom.js";
import { recolour } from "./charts.js";
import { hideTip } from "./tip.js";

const OF_A_RUN = {
  overview: () => import("./pages/overview.js"),
  latents: () => import("./pages/latents.js"),
  latent: () => import("./pages/latent.js"),
  splits: () => import("./pages/splits.js"),
  merges: () => import("./pages/splits.js"),
  split: () => import("./pages/split.js"),
  compare: () => import("./pages/compare.js"),
  try: () => import("./pages/try.js"),
  search: () => import("./pages/search.js"),
};
const OF_A_SWEEP = { sweep: () => import("./pages/sweep.js"), cell: () => import("./pages/cell.js") };
const PAGES = SWEEP ? OF_A_SWEEP : OF_A_RUN;
const START = SWEEP ? "sweep" : "overview";
const JUMPS = SWEEP ? { o: "sweep" } : { o: "overview", l: "latents", s: "splits", m: "merges", c: "compare", t: "try" };
const MENU = { latent: "latents", split: "splits", search: "latents", cell: "sweep" };

const main = document.getElementById("page");
const bar = document.getElementById("bar");
const places = new Map(); // hash -> how far it was scrolled
let page = null;
let turn = 0;
let here = null;

/** `#/latents/solo-s0?sort=rate` -> {name, parts, query}. */
function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...parts] = path.split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return { name: name || START, parts: parts.filter((part) => part !== ""), query: new URLSearchParams(query) };
}

async function open() {
  const mine = ++turn;
  const { name, parts, query } = route();
  const later = setTimeout(() => {
    bar.hidden = false;
  }, 120);
  let next;
  try {
    if (!Object.hasOwn(PAGES, name)) throw new Error(`there is no page '${name}'`);
    next = await (await PAGES[name]()).page({ name, parts, query });
  } catch (error) {
    next = { title: "Not found", node: problem(error) };
  }
  clearTimeout(later);
  if (mine !== turn) return;
  bar.hidden = true;
  hideTip();
  page?.close?.();
  page = next;
  here = location.hash;
  main.replaceChildren(next.node);
  if (name !== "search" && document.activeElement !== search) search.value = "";
  next.ready?.();
  document.title = `${next.title} · metasae`;
  const menu = next.menu || MENU[name] || name;
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.dataset.page === menu) {
      link.setAttribute("aria-current", "page");
      link.parentElement.scrollLeft = link.offsetLeft - link.parentElement.offsetLeft - 40;
    } else link.removeAttribute("aria-current");
  }
  window.scrollTo(0, places.get(location.hash) || 0);
  say(next.title);
  document.body.dataset.shown = location.hash || `#/${START}`;
}

function problem(error) {
  return h(
    "div",
    { class: "page" },
    h(
      "section",
      { class: "card error", role: "alert" },
      h("h1", {}, "Nothing to show here"),
      h("p", {}, error.message),
      h("p", {}, h("a", { href: `#/${START}` }, SWEEP ? "Go to the sweep" : "Go to the overview")),
    ),
  );
}

addEventListener("hashchange", open);
addEventListener(
  "scroll",
  () => {
    if (here === location.hash) places.set(here, scrollY);
  },
  { passive: true },
);

// ---- theme: the reader's choice, else the system's

const dark = matchMedia("(prefers-color-scheme: dark)");
function showTheme() {
  const wanted = localStorage.getItem("metasae-theme") || (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = wanted;
  recolour();
}
function switchTheme() {
  localStorage.setItem("metasae-theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  showTheme();
}
dark.addEventListener("change", showTheme);
document.getElementById("theme").addEventListener("click", switchTheme);

// ---- search and help

const search = document.getElementById("search");
document.getElementById("find").addEventListener("submit", (event) => {
  event.preventDefault();
  if (search.value.trim()) location.hash = `#/search/${encodeURIComponent(search.value.trim())}`;
});
const help = document.getElementById("help");
document.getElementById("help-button").addEventListener("click", () => help.showModal());
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

// ---- keys

let jump = -Infinity; // when g was pressed, not when a busy page came to hear of it

/** j and k: the page's own list, or whatever has the class `item`. */
function step(by) {
  if (page?.step) return page.step(by);
  const items = [...main.querySelectorAll(".item")];
  if (!items.length) return;
  const at = items.findIndex((item) => item.contains(document.activeElement));
  const next = items[at < 0 ? (by > 0 ? 0 : items.length - 1) : Math.min(Math.max(at + by, 0), items.length - 1)];
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  "/": () => {
    const field = main.querySelector("[data-search]") || search;
    field.focus();
    field.select();
  },
  "?": () => help.showModal(),
  d: switchTheme,
  g: (event) => {
    jump = event.timeStamp;
  },
  "[": () => page?.previous?.(),
  "]": () => page?.next?.(),
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.closest?.("input, textarea, select");
  if (event.key === "Escape") {
    if (help.open) return;
    hideTip();
    if (typing) typing.blur();
    else page?.clear?.();
    return;
  }
  if (typing || help.open) return;
  const jumps = event.timeStamp - jump < 1500 && Object.hasOwn(JUMPS, event.key);
  jump = -Infinity;
  if (jumps) location.hash = `#/${JUMPS[event.key]}`;
  else if (Object.hasOwn(KEYS, event.key)) KEYS[event.key](event);
  else if (event.key === "Enter" && event.target.matches?.(".item, .row")) event.target.querySelector("a[href]")?.click();
  else return;
  event.preventDefault();
});

showTheme();
const name = document.getElementById("run");
if (SWEEP) name.parentElement.href = `#/${START}`;
(SWEEP ? data.sweep() : data.overview()).then(
  ({ run }) => {
    name.textContent = run;
  },
  () => {},
);
if (STATIC) add(name.parentElement, h("span", { class: "tag" }, "static copy"));
open();
