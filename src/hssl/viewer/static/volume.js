// Draws a volume with its layers by NiiVue (niivue.js, a script before this one), and connects the tools beside it.
import { ask, element } from "./dom.js";

const NEAREST = true; // pixels as they are stored
const [AUTO, GRID] = [0, 2]; // how NiiVue lays the planes out

/** Solves affine * [s, r, c, 1] = mm for the voxel. */
function inverse(affine) {
  const [[a, b, c, x], [d, e, f, y], [g, h, i, z]] = affine;
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const rows = [
    [e * i - f * h, c * h - b * i, b * f - c * e],
    [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d],
  ];
  return (mm) => {
    const at = [mm[0] - x, mm[1] - y, mm[2] - z];
    return rows.map((row) => row.reduce((sum, value, axis) => sum + value * at[axis], 0) / det);
  };
}

function forward(affine) {
  return (place) => affine.slice(0, 3).map((row) => row[0] * place[0] + row[1] * place[1] + row[2] * place[2] + row[3]);
}

function rgb(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

async function load(url) {
  return URL.createObjectURL(await (await ask(url)).blob());
}

/** What NiiVue must know of a layer. */
async function described(layer, number, window) {
  const image = { url: await load(layer.url), name: `${number}${layer.url.endsWith(".gz") ? ".nii.gz" : ".nii"}` };
  if (layer.kind === "image") return { ...image, colormap: "gray", opacity: 1, ...(window && { cal_min: window[0], cal_max: window[1] }) };
  const opacity = layer.shown ? 0.5 : 0;
  if (layer.kind === "map") return { ...image, colormap: "hssl-map", opacity, cal_min: 0, cal_max: 1 };
  return { ...image, opacity };
}

function labelColours(labels) {
  const colours = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
  for (const label of labels) {
    const [red, green, blue] = rgb(label.colour);
    colours.R.push(red);
    colours.G.push(green);
    colours.B.push(blue);
    colours.A.push(255);
    colours.I.push(label.value);
    colours.labels.push(label.name);
  }
  return colours;
}

export async function showVolume(section, scene) {
  const canvas = section.querySelector("canvas");
  const state = section.querySelector(".state");
  const say = (text) => (state.textContent = text);
  if (!globalThis.niivue) return say("NiiVue is not here.");
  const nv = new globalThis.niivue.Niivue({
    isRadiologicalConvention: true,
    isNearestInterpolation: NEAREST,
    dragAndDropEnabled: false,
    show3Dcrosshair: true,
    multiplanarShowRender: 1,
    crosshairWidth: 1,
    crosshairColor: [0.37, 0.92, 0.83, 0.9],
    loadingText: "",
    logLevel: "error",
  });
  try {
    say("loading …");
    await nv.attachToCanvas(canvas);
    nv.setMultiplanarLayout(canvas.clientWidth > 0.8 * canvas.clientHeight ? GRID : AUTO);
    nv.addColormap("hssl-map", { R: [255, 255, 255], G: [30, 90, 240], B: [0, 0, 80], A: [0, 150, 255], I: [0, 128, 255] });
    const layers = await Promise.all(scene.layers.map((layer, number) => described(layer, number, scene.window)));
    await nv.loadVolumes(layers);
    layers.forEach((layer) => URL.revokeObjectURL(layer.url));
  } catch (error) {
    say(`This cannot be drawn: ${error.message}`);
    throw error;
  }
  scene.layers.forEach((layer, number) => {
    if (layer.kind === "mask") nv.volumes[number].setColormapLabel(labelColours(layer.labels));
  });
  nv.updateGLVolume();
  connectViews(section, nv);
  connectWindow(section, nv, scene);
  section.querySelector("[data-layers]").replaceChildren(...scene.layers.map((layer, number) => layerTools(layer, number, nv)));
  connectPlace(section, canvas, nv, scene);
  nv.setSliceType(Number(section.querySelector("input[name=view]:checked").value));
  say("");
  section.dataset.ready = "yes";
  return nv;
}

function connectViews(section, nv) {
  for (const button of section.querySelectorAll("input[name=view]")) {
    button.addEventListener("change", () => nv.setSliceType(Number(button.value)));
  }
}

function connectWindow(section, nv, scene) {
  const volume = nv.volumes[0];
  const [low, high] = scene.window ?? [volume.global_min, volume.global_max];
  const sliders = [0, 1].map((number) => section.querySelector(`[data-window="${number}"]`));
  const step = (high - low) / 200 || 1;
  const digits = Math.max(0, Math.min(3, 2 - Math.floor(Math.log10(high - low || 1))));
  sliders.forEach((slider, number) => {
    Object.assign(slider, { min: low, max: high, step });
    slider.value = number ? volume.cal_max : volume.cal_min;
    const told = () => (slider.nextElementSibling.textContent = Number(slider.value).toFixed(digits));
    told();
    slider.addEventListener("input", () => {
      const [dark, bright] = sliders.map((each) => Number(each.value));
      if (dark >= bright) slider.value = number ? dark + step : bright - step;
      told();
      [volume.cal_min, volume.cal_max] = sliders.map((each) => Number(each.value));
      nv.updateGLVolume();
    });
  });
}

function layerTools(layer, number, nv) {
  const tools = element("fieldset", {}, element("legend", { textContent: layer.name }));
  if (layer.kind === "image") return "";
  const shown = element("input", { type: "checkbox", checked: layer.shown });
  const opacity = element("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0.5 });
  const told = element("output");
  const more = element("div", { hidden: !layer.shown });
  const apply = () => {
    more.hidden = !shown.checked;
    told.textContent = `${Math.round(100 * opacity.value)} %`;
    nv.setOpacity(number, shown.checked ? Number(opacity.value) : 0);
  };
  shown.addEventListener("change", apply);
  opacity.addEventListener("input", apply);
  told.textContent = "50 %";
  if (layer.note) more.append(element("p", { className: "soft", textContent: layer.note }));
  tools.append(element("label", {}, shown, " shown"), more);
  more.append(element("label", { className: "slider" }, "opacity", opacity, told));
  const labels = layer.labels.map((label) => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = label.colour;
    const volume = label.ml === null ? "" : `${label.ml < 10 ? label.ml.toFixed(2) : label.ml.toFixed(1)} ml`;
    return element("li", {}, swatch, element("span", { textContent: label.name }), element("span", { className: "n", textContent: volume }));
  });
  if (labels.length) more.append(element("ul", { className: "labels" }, ...labels));
  return tools;
}

function connectPlace(section, canvas, nv, scene) {
  const inputs = [0, 1, 2].map((axis) => section.querySelector(`[data-place="${axis}"]`));
  const values = section.querySelector("[data-values]");
  const [toVoxel, toMm] = [inverse(scene.affine), forward(scene.affine)];
  const within = (place) => place.map((value, axis) => Math.max(0, Math.min(scene.shape[axis] - 1, Math.round(value))));
  let here = scene.start;

  const told = (layer, value) => {
    if (layer.kind !== "mask") return `${layer.name} ${Number(value.toPrecision(4))}`;
    return `${layer.name} ${layer.labels.find((label) => label.value === value)?.name ?? (value ? value : "nothing")}`;
  };
  nv.onLocationChange = (location) => {
    here = within(toVoxel(location.mm));
    inputs.forEach((input, axis) => (input.value = here[axis]));
    const found = location.values.map((each) => each.value);
    values.textContent = scene.layers.map((layer, number) => told(layer, found[number])).join(", ");
    section.dataset.values = JSON.stringify(found);
    section.dataset.voxel = JSON.stringify(here);
  };
  const go = (place) => {
    nv.scene.crosshairPos = nv.mm2frac([...toMm(within(place)), 1], 0, true);
    nv.createOnLocationChange();
    nv.drawScene();
  };
  inputs.forEach((input, axis) => {
    input.max = scene.shape[axis] - 1;
    input.addEventListener("change", () => go(inputs.map((each) => Number(each.value))));
  });
  const [across, down, through] = scene.keys;
  const steps = { ArrowLeft: [across, -1], ArrowRight: [across, 1], ArrowUp: [down, -1], ArrowDown: [down, 1], PageUp: [through, -1], PageDown: [through, 1] };
  canvas.addEventListener(
    "keydown",
    (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      const [axis, by] = steps[event.key];
      go(here.map((value, each) => value + (each === axis ? by : 0)));
    },
    true,
  );
  go(scene.start);
}

for (const section of document.querySelectorAll("[data-volume]")) {
  const scene = section.querySelector("script[type='application/json']");
  if (scene) showVolume(section, JSON.parse(scene.textContent));
}
