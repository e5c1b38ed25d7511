// The page of a run: curves that grow, its own masks by step, and the map of slices.
import { askJson, drawn, element, part, root, sliceAddress } from "./dom.js";

const PAUSE = 2000; // ms between two looks at a run that trains
const page = document.querySelector("[data-run]");
const here = `${root}/run/${page.dataset.run}`;
const find = (name) => page.querySelector(`[${name}]`);

// Curves ------------------------------------------------------------------------------------------------------------

const [WIDTH, HEIGHT, LEFT, BOTTOM] = [320, 160, 44, 20];

function short(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  return size < 0.001 || size >= 10000 ? value.toExponential(0) : String(Number(value.toPrecision(3)));
}

function chart(curve, steps) {
  const values = curve.points.map(([, value]) => value).filter((value) => value !== null);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (curve.kind === "score") [low, high] = [0, 1];
  if (low === high) [low, high] = [low - Math.abs(low || 1) / 10, high + Math.abs(high || 1) / 10];
  const x = (step) => LEFT + ((WIDTH - LEFT - 8) * step) / steps;
  const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - 10) * (value - low)) / (high - low);
  const line = curve.points.filter(([, value]) => value !== null).map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`);
  const last = curve.points.at(-1);
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${curve.name}: ${short(last[1])} at step ${last[0]}` });
  for (const [value, at] of [[low, y(low)], [high, y(high)]]) {
    svg.append(drawn("line", { x1: LEFT, x2: WIDTH - 8, y1: at, y2: at, class: "grid" }));
    svg.append(drawn("text", { x: LEFT - 6, y: at + 4, class: "end" }, short(value)));
  }
  svg.append(drawn("text", { x: LEFT, y: HEIGHT - 4 }, "0"), drawn("text", { x: WIDTH - 8, y: HEIGHT - 4, class: "end" }, String(steps)));
  svg.append(drawn("polyline", { points: line.join(" "), class: "curve" }));
  if (last[1] !== null) svg.append(drawn("circle", { cx: x(last[0]), cy: y(last[1]), r: 3, class: "dot" }));
  const title = element("figcaption", {}, element("b", { textContent: curve.name }), ` ${last[1] === null ? "" : short(last[1])}`);
  return element("figure", {}, title, svg);
}

const KINDS = { score: "Validation Dice", loss: "Losses, by level", watched: "Watched, not learnt from", rate: "Learning rate" };

function showCurves(metrics) {
  const parts = Object.entries(KINDS).flatMap(([kind, title]) => {
    const curves = metrics.curves.filter((curve) => curve.kind === kind);
    if (!curves.length) return [];
    const charts = element("div", { className: "row" }, ...curves.map((curve) => chart(curve, metrics.steps)));
    return [element("h3", { textContent: title }), charts];
  });
  find("data-curves").replaceChildren(...parts);
  const done = metrics.complete ? "complete" : metrics.step ? "in training, or interrupted" : "nothing logged yet";
  find("data-progress").textContent = `step ${metrics.step} of ${metrics.steps}, ${done}`;
  find("data-bar").value = metrics.step / metrics.steps;
}

async function follow() {
  let network = null;
  for (;;) {
    try {
      const metrics = await askJson(`${here}/metrics.json`);
      showCurves(metrics);
      if (metrics.network !== network) {
        network = metrics.network;
        if (network) await Promise.all([showOwnMasks(), find("data-map")?.hidden && showMap()]);
      }
      page.dataset.ready = "yes";
      if (metrics.complete) return;
    } catch (error) {
      find("data-progress").textContent = error.message;
    }
    await new Promise((wake) => setTimeout(wake, PAUSE));
  }
}

// Its own masks -----------------------------------------------------------------------------------------------------

async function showOwnMasks() {
  const place = find("data-own");
  if (!place) return;
  const state = find("data-own-state");
  try {
    const { complete, sheets } = await askJson(`${here}/own-masks.json`);
    const figures = sheets.toReversed().map(({ step, believed }) => {
      const share = believed === null ? "" : `, ${(100 * believed).toFixed(0)} % of the pixels believed`;
      const image = element("img", { className: "wide", src: `${here}/own-masks/${step}.png`, alt: `Slices without masks, and the masks of step ${step}` });
      const scroll = element("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: `Own masks, step ${step}` }, image);
      return element("figure", {}, element("figcaption", { textContent: `step ${step}${share}` }), scroll);
    });
    place.replaceChildren(...figures);
    state.textContent = complete
      ? "Middle slices of training subjects whose masks it has not learnt from, with the masks of the final network. How they grew is not kept; the watched curves above tell how much was believed."
      : "Middle slices of training subjects whose masks it does not learn from, with what the latest checkpoint says of them. Filled: believed, and learnt from where self-training is on. Outline: not. A new row comes with each checkpoint while this page is served.";
  } catch (error) {
    state.textContent = error.message;
  }
}

// The map -----------------------------------------------------------------------------------------------------------

async function showMap() {
  const place = find("data-map");
  const state = find("data-map-state");
  try {
    const map = await askJson(`${here}/map.json`);
    place.hidden = false;
    drawMap(place, map);
    state.textContent =
      `Slices of validation subjects (and of test subjects, where those are fewer than two), by the deepest features of step ${map.step} (PCA, t-SNE): slices that the network finds alike lie together. ` +
      "Point at one to see it; choose it to see its nearest neighbours among other subjects, in the whole feature space. No mask was used to place them.";
  } catch (error) {
    state.textContent = error.message;
  }
}

function drawMap(place, map) {
  const svg = place.querySelector("svg");
  const near = place.querySelector(".near");
  const scale = (key) => {
    const values = map.slices.map((slice) => slice[key]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return (slice) => 3 + (94 * (slice[key] - low)) / (high - low || 1);
  };
  const [x, y] = [scale("x"), scale("y")];
  const card = (slice, title) => {
    const address = `${root}/store/${map.store}/case/${part(slice.task)}/${part(slice.case)}`;
    const image = element("img", { src: sliceAddress(map.store, slice), alt: "", width: 128, height: 128 });
    const labels = slice.labels.length ? slice.labels.join(", ") : "no label";
    return element("a", { href: address, className: "card" }, image, element("b", { textContent: title ?? slice.case }),
      element("span", { textContent: `${slice.task}, slice ${slice.slice}` }), element("span", { textContent: labels }));
  };
  let chosen = -1;
  const dots = map.slices.map((slice, number) => {
    const dot = drawn("circle", { cx: x(slice), cy: y(slice), r: 1.2, fill: map.colours[slice.task] });
    dot.append(drawn("title", {}, `${slice.case}, slice ${slice.slice}`));
    dot.addEventListener("pointerenter", () => choose(number));
    dot.addEventListener("click", () => choose(number, true));
    return dot;
  });
  const choose = (number, kept = false) => {
    if (kept) svg.dataset.kept = number;
    if (number === chosen && !kept) return;
    chosen = number;
    const slice = map.slices[number];
    dots.forEach((dot, other) => {
      dot.classList.toggle("chosen", other === number);
      dot.classList.toggle("near", slice.near.includes(other));
    });
    near.replaceChildren(
      element("h3", { textContent: "Chosen" }), element("div", { className: "cards" }, card(slice)),
      element("h3", { textContent: "Nearest among other subjects" }),
      element("div", { className: "cards" }, ...slice.near.map((other) => card(map.slices[other]))),
    );
  };
  svg.replaceChildren(...dots);
  svg.addEventListener("pointerleave", () => svg.dataset.kept && choose(Number(svg.dataset.kept)));
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    choose((chosen + by + map.slices.length) % map.slices.length, true);
  });
  place.querySelector(".legend").replaceChildren(
    ...Object.entries(map.colours).map(([task, colour]) => {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = colour;
      return element("li", {}, swatch, task);
    }),
  );
  choose(0, true);
}

follow();
