// One image, large: a panel a method, with one zoom for all.

const view = { place: 0, scale: 1, x: 0, y: 0, pointers: new Map(), start: null };
const MAX_ZOOM = 16;

function openLarge(place) {
  view.place = place;
  fitZoom();
  fillLarge();
  if (!byId("large").open) byId("large").showModal();
}

function closeLarge() {
  byId("large").close();
}

function stepLarge(step) {
  const place = view.place + step;
  if (place >= 0 && place < shown.length) openLarge(place);
}

function fillLarge() {
  const image = shown[view.place];
  const stage = byId("stage");
  stage.replaceChildren(...page.methods.map((method, number) => makePanel(image, method, number)));
  stage.dataset.panels = page.methods.length;
  byId("large-name").textContent = image.name;
  byId("position").textContent = `${view.place + 1} of ${shown.length}`;
  byId("previous").disabled = view.place === 0;
  byId("next").disabled = view.place === shown.length - 1;
  describeLarge(image);
  applyZoom();
}

function makePanel(image, method, number) {
  const panel = make("figure", "view");
  const window_ = make("div", "window");
  window_.append(makeLayers(image, number, true));
  panel.append(window_);
  if (page.methods.length > 1) {
    const flagged = isFlagged(image, number);
    const words = [method.name, `score ${scoreText(findingOf(image, number).score)}`, rankOf(image, number)];
    if (flagged !== null) words.push(verdictOf(image, number).word.toLowerCase());
    panel.append(make("figcaption", "", words.join(" · ")));
  }
  return panel;
}

function describeLarge(image) {
  const { word, type } = verdictOf(image);
  byId("verdict").textContent = word;
  byId("verdict").dataset.type = type;
  const finding = findingOf(image);
  const entries = [["Score", scoreText(finding.score)]];
  if (finding.p !== null) entries.unshift(["p-value", pText(finding.p)]);
  if (image.kind !== null) entries.push(["Labelled", image.kind]);
  if (page.categories.length > 1) entries.push(["Category", page.categories[image.category].name]);
  entries.push(["Size", `${image.size[1]} × ${image.size[0]} px`]);
  byId("numbers").replaceChildren(...entries.map(([name, value]) => {
    const pair = make("div");
    pair.append(make("dt", "", name), make("dd", "", value));
    return pair;
  }));
  describeRegions(image);
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

// Zoom ----------------------------------------------------------------------------------------------------------------

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
  const image = shown[view.place];
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
  large.classList.toggle("with-truth", byId("truth").checked);
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

// Keys, wheel, fingers ------------------------------------------------------------------------------------------------

const LARGE_KEYS = {
  ArrowLeft: () => stepLarge(-1),
  ArrowRight: () => stepLarge(1),
  Home: () => openLarge(0),
  End: () => openLarge(shown.length - 1),
  o: () => toggle("outline"),
  t: () => hasMasks && toggle("truth"),
  m: toggleMap,
  "+": zoomIn,
  "=": zoomIn,
  "-": () => zoomBy(1 / 1.5),
  0: () => { fitZoom(); applyZoom(); },
};

const hasMasks = page.images.some((image) => image.truth);

function watchLarge() {
  const clicks = {
    close: closeLarge,
    previous: () => stepLarge(-1),
    next: () => stepLarge(1),
    "zoom-in": zoomIn,
    "zoom-out": () => zoomBy(1 / 1.5),
    "zoom-fit": () => { fitZoom(); applyZoom(); },
  };
  for (const [name, act] of Object.entries(clicks)) byId(name).addEventListener("click", act);
  for (const name of ["opacity", "outline", "truth"]) byId(name).addEventListener("input", applyLayers);
  byId("large").addEventListener("keydown", (event) => {
    const moves = event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End";
    if (event.ctrlKey || event.metaKey || event.altKey || (moves && event.target.type === "range")) return;
    const act = LARGE_KEYS[event.key] || LARGE_KEYS[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });
  byId("large").addEventListener("close", () => focusTile(view.place));
  watchFingers(byId("stage"));
  applyLayers();
}

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
