// The editor: polygons over the image, moved by mouse, finger and keys, and saved.

const TITLES = { region: "Region", ignore: "Ignored area" };
const CORNER_PX = 7; // on the screen
const CLOSE_PX = 12; // so near to the first corner, a polygon is closed
const KEY_STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let cross = [0, 0]; // where Enter sets a corner
let saved = "[]";
let confirmed = false; // whether a region that the model has not learnt is saved all the same
let dragged = null; // the pointer that moves a corner

function startDrawing() {
  drawing.size = page.part.size;
  const [height, width] = drawing.size;
  cross = [width / 2, height / 2];
  if (page.roi !== null) {
    const scale = [width / page.roi.size[1], height / page.roi.size[0]];
    const scaled = (points) => points.map(([x, y]) => [x * scale[0], y * scale[1]]);
    const read = (type, polygons) => polygons.map((points) => ({ type, points: scaled(points) }));
    drawing.polygons = [...read("region", page.roi.polygons), ...read("ignore", page.roi.ignore)];
  }
  saved = snapshot();
  byId("drawing").setAttribute("viewBox", `0 0 ${width} ${height}`);
  byId("board").style.aspectRatio = `${width} / ${height}`;
  byId("board").style.setProperty("--ratio", width / height);
}

/** Pixels of the image that a pixel of the screen takes. */
function pixelSize() {
  return drawing.size[1] / Math.max(1, byId("drawing").clientWidth);
}

function redraw() {
  const svg = byId("drawing");
  const focused = document.activeElement.dataset.corner;
  svg.replaceChildren(...makeShade());
  drawing.polygons.forEach(({ type, points }, place) => {
    const isOpen = drawing.open && place === drawing.polygon;
    const path = `M${points.map((point) => point.join(" ")).join("L")}${isOpen ? "" : "Z"}`;
    const marks = { class: `shape ${type}${place === drawing.polygon ? " chosen" : ""}`, "data-polygon": place };
    if (points.length > 0) svg.append(makeSvg("path", { d: path, class: "rim" }), makeSvg("path", { d: path, ...marks }));
  });
  if (drawing.polygon >= 0) drawCorners(svg);
  if (drawing.open) drawCross(svg);
  const corner = focused === undefined ? null : svg.querySelector(`[data-corner="${drawing.point}"]`);
  if (corner !== null) corner.focus({ preventScroll: true });
  else if (focused !== undefined) svg.focus({ preventScroll: true });
  listPolygons();
  showState();
}

/** What is not judged is darker. */
function makeShade() {
  const [height, width] = drawing.size;
  const all = { x: 0, y: 0, width, height };
  const inside = pointsOf("region").filter((points) => points.length > 2);
  const mask = makeSvg("mask", { id: "outside", maskUnits: "userSpaceOnUse", ...all });
  const hasMask = page.mask !== "" && inside.length === 0;
  mask.append(makeSvg("rect", { ...all, class: inside.length > 0 || hasMask ? "left-out" : "judged" }));
  const pathOf = (points) => `M${points.join("L")}Z`;
  for (const points of inside) mask.append(makeSvg("path", { d: pathOf(points), class: "judged" }));
  if (hasMask) {
    const [rows, columns] = page.roi.size;
    mask.append(makeSvg("path", { d: page.mask, class: "judged", transform: `scale(${width / columns} ${height / rows})` }));
  }
  for (const points of pointsOf("ignore")) if (points.length > 2) mask.append(makeSvg("path", { d: pathOf(points), class: "left-out" }));
  return [mask, makeSvg("rect", { ...all, class: "shade", mask: "url(#outside)" })];
}

function drawCorners(svg) {
  const { points } = chosenPolygon();
  const radius = CORNER_PX * pixelSize();
  if (!drawing.open) {
    points.forEach((_, place) => {
      const [x, y] = middleBehind(points, place);
      svg.append(makeSvg("circle", { cx: x, cy: y, r: radius * 0.6, class: "middle", "data-middle": place }));
    });
  }
  points.forEach(([x, y], place) => {
    const corner = makeSvg("circle", { cx: x, cy: y, r: radius, class: `corner${place === drawing.point ? " chosen" : ""}`, "data-corner": place, tabindex: 0, role: "button" });
    corner.setAttribute("aria-label", `Corner ${place + 1} of ${points.length}, at ${Math.round(x)}, ${Math.round(y)}`);
    svg.append(corner);
  });
}

function drawCross(svg) {
  const [x, y] = cross;
  const arm = 14 * pixelSize();
  const d = `M${x - arm} ${y}H${x + arm}M${x} ${y - arm}V${y + arm}`;
  svg.append(makeSvg("path", { d, class: "rim" }), makeSvg("path", { d, class: "cross" }));
}

function listPolygons() {
  const counts = { region: 0, ignore: 0 };
  byId("polygons").replaceChildren(...drawing.polygons.map(({ type, points }, place) => {
    counts[type] += 1;
    const name = `${TITLES[type]} ${counts[type]}`;
    const item = make("li");
    const choose = make("button", "chip", name);
    choose.append(make("span", "number", `${points.length} corners`));
    choose.setAttribute("aria-pressed", String(place === drawing.polygon));
    choose.addEventListener("click", () => change(() => choosePolygon(place), false));
    const remove = make("button", "quiet", "✕");
    remove.setAttribute("aria-label", `Delete ${name}`);
    remove.addEventListener("click", () => change(() => deletePolygon(place)));
    for (const button of [choose, remove]) button.type = "button";
    item.append(choose, remove);
    return item;
  }));
}

function showState() {
  byId("undo").disabled = drawing.before.length === 0;
  byId("delete-point").disabled = drawing.point < 0;
  byId("save").disabled = !page.may_administer || drawing.open || snapshot() === saved;
  byId("save").textContent = confirmed ? "Save all the same" : "Save";
  byId("how").textContent = drawing.open
    ? "Click to set corners, and on the first one to close. By keys: arrows move the cross, Enter sets, Escape closes."
    : drawing.polygons.length === 0 && page.mask === ""
      ? "The whole image is judged, or what the model has learnt. Draw a region to judge only that, or an area to ignore."
      : "Drag a corner, or a small dot to make one. What is darker is not judged.";
}

/** Do something, and draw it. */
function change(act, edits = true) {
  act();
  if (edits) {
    confirmed = false;
    if (page.may_administer) say("said", "");
  }
  redraw();
}

// Mouse and fingers ---------------------------------------------------------------------------------------------------

function placeOf(event) {
  const box = byId("drawing").getBoundingClientRect();
  const [height, width] = drawing.size;
  return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
}

function pressed(event) {
  const { corner, middle, polygon } = event.target.dataset;
  if (drawing.open) {
    event.preventDefault();
    byId("drawing").focus({ preventScroll: true });
    change(() => setCorner(placeOf(event)));
    return;
  }
  if (corner === undefined && middle === undefined) {
    change(() => choosePolygon(polygon === undefined ? -1 : Number(polygon)), false);
    return;
  }
  dragged = event.pointerId;
  byId("drawing").setPointerCapture(dragged);
  change(() => {
    if (middle !== undefined) addPoint(placeOf(event), Number(middle));
    else {
      keepForUndo();
      drawing.point = Number(corner);
    }
  });
  byId("drawing").querySelector(`[data-corner="${drawing.point}"]`).focus({ preventScroll: true });
  event.preventDefault();
}

/** A corner where somebody points; on the first one, the polygon is closed. */
function setCorner(place) {
  const { points } = chosenPolygon();
  const near = CLOSE_PX * pixelSize();
  if (points.length >= 3 && Math.hypot(place[0] - points[0][0], place[1] - points[0][1]) < near) closePolygon();
  else addPoint(place);
}

function watchPointers() {
  const svg = byId("drawing");
  svg.addEventListener("pointerdown", pressed);
  svg.addEventListener("pointermove", (event) => {
    if (event.pointerId === dragged) change(() => movePoint(drawing.point, placeOf(event)));
  });
  for (const name of ["pointerup", "pointercancel"]) svg.addEventListener(name, () => { dragged = null; });
  svg.addEventListener("focusin", (event) => {
    const { corner } = event.target.dataset;
    if (corner === undefined || Number(corner) === drawing.point) return;
    drawing.point = Number(corner);
    for (const each of svg.querySelectorAll(".corner")) each.classList.toggle("chosen", each === event.target);
    showState();
  });
  new ResizeObserver(redraw).observe(byId("board"));
}

// Keys ----------------------------------------------------------------------------------------------------------------

function moveByKey(event) {
  const by = KEY_STEPS[event.key].map((step) => step * (event.shiftKey ? 10 : 1));
  const corner = event.target.dataset.corner;
  if (corner !== undefined) {
    const [x, y] = chosenPolygon().points[corner];
    change(() => {
      keepForUndo();
      movePoint(Number(corner), [x + by[0], y + by[1]]);
    });
  } else if (drawing.open && event.target === byId("drawing")) {
    const step = Math.max(1, Math.round(drawing.size[1] / 100));
    cross = inImage([cross[0] + by[0] * step, cross[1] + by[1] * step]);
    redraw();
  } else return false;
  return undefined;
}

function begin(type) {
  change(() => beginPolygon(type));
  byId("drawing").focus({ preventScroll: true });
}

function deleteChosen() {
  if (drawing.point >= 0) change(() => deletePoint(drawing.point));
  else if (drawing.polygon >= 0) change(() => deletePolygon(drawing.polygon));
}

function watchEditorKeys() {
  const behind = (event) => {
    if (event.target.dataset.corner === undefined || drawing.open) return false;
    return change(() => addPointBehind(drawing.point));
  };
  watchPageKeys({
    ...Object.fromEntries(Object.keys(KEY_STEPS).map((key) => [key, moveByKey])),
    Enter: (event) => (drawing.open && event.target.closest("#drawing") ? change(() => setCorner(cross)) : false),
    Escape: () => change(() => { if (drawing.open) closePolygon(); else choosePolygon(-1); }, drawing.open),
    Delete: deleteChosen,
    Backspace: deleteChosen,
    "+": behind,
    r: () => begin("region"),
    i: () => begin("ignore"),
  });
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
      event.preventDefault();
      change(undo);
    }
  });
}

// Saving --------------------------------------------------------------------------------------------------------------

async function save() {
  const content = { size: drawing.size, polygons: pointsOf("region"), ignore: pointsOf("ignore"), confirmed };
  try {
    const { saved: file, todo } = await ask(ofProduct("/region"), content);
    saved = snapshot();
    page.mask = "";
    confirmed = false;
    say("said", todo === null ? `Saved in ${file}.` : `Saved in ${file}, and not yet in use: ${todo}.`);
  } catch (error) {
    confirmed = Boolean(error.answer && error.answer.confirm);
    const after = " What serves now goes on until the service ends; after that no part is judged before the model has learnt it.";
    say("said", `Not saved: ${error.message}.${confirmed ? after : ""}`, true);
  }
  redraw();
}

watchHead();
if (page.part !== null) {
  startDrawing();
  watchPointers();
  watchEditorKeys();
  byId("add-region").addEventListener("click", () => begin("region"));
  byId("add-ignore").addEventListener("click", () => begin("ignore"));
  byId("delete-point").addEventListener("click", deleteChosen);
  byId("undo").addEventListener("click", () => change(undo));
  byId("save").addEventListener("click", save);
  redraw();
}
document.documentElement.dataset.ready = "yes";
