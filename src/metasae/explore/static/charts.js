// Figures by plotly, which is loaded when the first one is drawn. Colours come from the style sheet, so both themes fit.

import { armClass, h } from "./dom.js";

const live = new Map(); // element -> how to draw it again
let loading = null;

function plotly() {
  loading ??= new Promise((done, fail) => {
    const script = h("script", { src: "plotly.min.js" });
    script.addEventListener("load", () => {
      delete document.head.appendChild;
      done(window.Plotly);
    });
    script.addEventListener("error", () => {
      delete document.head.appendChild;
      loading = null;
      fail(new Error("plotly.min.js cannot be loaded"));
    });
    // While it loads, plotly's maps would put a style element into the page. The policy forbids that, and no chart of ours is a map.
    document.head.appendChild = (node) => (node.tagName === "STYLE" ? node : Node.prototype.appendChild.call(document.head, node));
    document.head.append(script);
  });
  return loading;
}

/** A colour of the style sheet in the theme of now. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** An arm's line colour in the theme of now. */
export function armColour(arm) {
  const probe = h("span", { class: armClass(arm), hidden: true });
  document.body.append(probe);
  const found = getComputedStyle(probe).getPropertyValue("--arm").trim();
  probe.remove();
  return found;
}

export const DASHES = { solo: "solid", control: "dash", joint: "solid", sequential: "dashdot" };
export const SYMBOLS = { solo: "circle", control: "square", joint: "diamond", sequential: "triangle-up" };

/** An empty place of fixed height. make() -> {traces, layout}; `label` says in words what the figure shows; click(point) hears of a mark. */
export function chart(label, make, size = "", click = null) {
  const place = h("div", { class: `chart ${size}`, role: "img", "aria-label": label });
  live.set(place, make);
  place.clicked = click;
  return place;
}

/** Draws the charts inside an element that is on the page now, and forgets those that are gone. */
export async function draw(root) {
  for (const place of live.keys()) if (!place.isConnected) live.delete(place);
  const places = [...root.querySelectorAll(".chart")].filter((place) => live.has(place));
  if (!places.length) return;
  let Plotly;
  try {
    Plotly = await plotly();
  } catch (error) {
    for (const place of places) place.textContent = error.message;
    return;
  }
  for (const place of places) if (place.isConnected) show(Plotly, place);
}

/** After a change of theme. */
export function recolour() {
  if (!window.Plotly) return;
  for (const place of live.keys()) if (place.isConnected) show(window.Plotly, place);
}

/** The figure again, after its choice of numbers changed. */
export function redraw(place) {
  if (window.Plotly && place.isConnected) show(window.Plotly, place);
}

function axis(values = {}) {
  const line = colour("--line");
  return {
    gridcolor: line,
    zerolinecolor: line,
    linecolor: line,
    automargin: true,
    ...values,
    title: { text: values.title, standoff: 8, font: { size: 12 } },
  };
}

function show(Plotly, place) {
  const { traces, layout } = live.get(place)();
  const { xaxis, yaxis, ...rest } = layout;
  Plotly.react(
    place,
    traces,
    {
      font: { family: "system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, sans-serif", size: 11.5, color: colour("--soft") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 52, r: 14, t: 8, b: 42 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11.5 } },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink"), size: 12 } },
      showlegend: false,
      dragmode: false,
      ...rest,
      xaxis: axis(xaxis),
      yaxis: axis(yaxis),
    },
    { displayModeBar: false, responsive: true, showTips: false, doubleClick: false },
  ).then(() => {
    // the place is the image and says in words what it shows; its parts have no names
    const tester = document.getElementById("js-plotly-tester"); // in which plotly measures words
    for (const part of [tester, ...place.querySelectorAll("svg")]) part?.setAttribute("aria-hidden", "true");
  });
  if (place.clicked && !place.hears) {
    place.hears = true;
    place.on("plotly_click", ({ points }) => place.clicked(points[0]));
  }
}

/** The outline of a histogram as x and y of a stepped line. */
export function steps(edges, counts) {
  const x = [],
    y = [];
  counts.forEach((count, i) => {
    x.push(edges[i], edges[i + 1]);
    y.push(count, count);
  });
  return { x, y };
}
