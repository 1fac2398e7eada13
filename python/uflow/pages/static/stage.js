// One image as large as its panel, and larger: layers on and off, zoom by wheel, keys and fingers, its regions.
// A page that has this says which image is large, `largeImage()`, and how to go on to another, `stepLarge(step)`.

const view = { place: 0, scale: 1, x: 0, y: 0, pointers: new Map(), start: null };
const MAX_ZOOM = 16;

function fitZoom() {
  Object.assign(view, { scale: 1, x: 0, y: 0 });
}

/** Zoom by a factor, around a point given in pixels from the middle of the panel. */
function zoomBy(factor, x = 0, y = 0) {
  const scale = Math.min(MAX_ZOOM, Math.max(1, view.scale * factor));
  const change = scale / view.scale;
  Object.assign(view, { scale, x: x - (x - view.x) * change, y: y - (y - view.y) * change });
  if (scale === 1) fitZoom();
  applyZoom();
}

/** Larger, around the strongest region that is found, or the middle. */
function zoomIn() {
  const image = largeImage();
  const [region] = regionsOf(image);
  if (!region) return zoomBy(1.5);
  const layers = byId("stage").querySelector(".layers");
  const path = makeSvg("path", { d: region.path });
  layers.querySelector("svg").append(path);
  const box = path.getBBox();
  path.remove();
  const x = ((box.x + box.width / 2) / image.size[1] - 0.5) * layers.clientWidth;
  const y = ((box.y + box.height / 2) / image.size[0] - 0.5) * layers.clientHeight;
  return zoomBy(1.5, view.x + x * view.scale, view.y + y * view.scale);
}

function applyZoom() {
  const stage = byId("stage");
  stage.style.setProperty("--zoom", view.scale);
  stage.style.setProperty("--x", `${view.x}px`);
  stage.style.setProperty("--y", `${view.y}px`);
  byId("zoom-value").textContent = `${view.scale.toFixed(1)}×`;
}

function applyLayers() {
  const large = byId("large");
  large.style.setProperty("--map", byId("opacity").value / 100);
  byId("opacity-value").textContent = `${byId("opacity").value} %`;
  large.classList.toggle("no-outline", !byId("outline").checked);
  if (byId("truth")) large.classList.toggle("with-truth", byId("truth").checked);
}

function toggle(name) {
  byId(name).checked = !byId(name).checked;
  applyLayers();
}

function toggleMap() {
  const slider = byId("opacity");
  if (slider.value > 0) slider.dataset.before = slider.value;
  slider.value = slider.value > 0 ? 0 : slider.dataset.before || 60;
  applyLayers();
}

function describeRegions(image) {
  const regions = regionsOf(image);
  const part = byId("regions");
  part.replaceChildren();
  if (regions.length === 0) return;
  part.append(make("h3", "", regions.length === 1 ? "1 region" : `${regions.length} regions`));
  const table = make("table");
  const head = make("tr");
  for (const title of ["", "p-value", "area, px²", "score"]) head.append(make("th", "", title));
  table.append(head);
  regions.slice(0, 12).forEach((region, place) => {
    const row = make("tr");
    const cells = [place + 1, pText(region.p), region.area.toLocaleString("en"), scoreText(region.score)];
    for (const cell of cells) row.append(make("td", "", cell));
    table.append(row);
  });
  part.append(table);
  if (regions.length > 12) part.append(make("p", "hint", `and ${regions.length - 12} weaker ones`));
}

function showLegend() {
  const legend = byId("legend");
  legend.hidden = page.legend === null;
  if (page.legend === null) return;
  const stops = page.legend.colours.map(({ at, colour }) => `${colour} ${100 * at}%`);
  legend.querySelector(".bar").style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  legend.querySelector(".ends").replaceChildren(...page.legend.words.map((word) => make("span", "", word)));
}

// Wheel and fingers -----------------------------------------------------------------------------------------------------

function watchFingers(stage) {
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 400), ...fromMiddle(event));
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => {
    if (view.scale > 1) fitZoom();
    else zoomBy(3, ...fromMiddle(event));
    applyZoom();
  });
  stage.addEventListener("pointerdown", (event) => {
    view.pointers.set(event.pointerId, event);
    view.start = event;
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", movePointer);
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, endPointer);
}

function movePointer(event) {
  const before = view.pointers.get(event.pointerId);
  if (!before) return;
  const others = [...view.pointers.values()].filter((each) => each.pointerId !== event.pointerId);
  view.pointers.set(event.pointerId, event);
  if (others.length === 1) {
    const apart = (each) => Math.hypot(each.clientX - others[0].clientX, each.clientY - others[0].clientY);
    zoomBy(apart(event) / Math.max(1, apart(before)), ...fromMiddle(event));
  } else if (view.scale > 1) {
    view.x += event.clientX - before.clientX;
    view.y += event.clientY - before.clientY;
    applyZoom();
  }
}

/** A finger that swiped over an image that is not enlarged turns the page. */
function endPointer(event) {
  const moved = view.start ? event.clientX - view.start.clientX : 0;
  const single = view.pointers.size === 1;
  view.pointers.delete(event.pointerId);
  if (event.type === "pointerup" && single && view.scale === 1 && event.pointerType === "touch" && Math.abs(moved) > 60) {
    stepLarge(moved < 0 ? 1 : -1);
  }
}

function fromMiddle(event) {
  const panel = (event.target.closest(".window") || byId("stage")).getBoundingClientRect();
  return [event.clientX - panel.left - panel.width / 2, event.clientY - panel.top - panel.height / 2];
}
