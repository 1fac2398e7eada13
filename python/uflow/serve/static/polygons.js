// The polygons of an editor, in pixels of the image: what is changed, and how it was before. Nothing here draws.

const drawing = {
  size: [1, 1], // height and width
  polygons: [], // { type: "region" or "ignore", points: [[x, y], ...] }
  polygon: -1, // the chosen one
  point: -1, // the chosen corner of it
  open: false, // whether corners are being set
  before: [], // for undo, the last one last
};
const MOST_UNDONE = 100;

function chosenPolygon() {
  return drawing.polygons[drawing.polygon];
}

function snapshot() {
  return JSON.stringify(drawing.polygons);
}

/** To be called before each change. */
function keepForUndo() {
  const now = snapshot();
  if (drawing.before.at(-1) !== now) drawing.before.push(now);
  if (drawing.before.length > MOST_UNDONE) drawing.before.shift();
}

function undo() {
  if (drawing.before.length === 0) return;
  drawing.polygons = JSON.parse(drawing.before.pop());
  Object.assign(drawing, { polygon: Math.min(drawing.polygon, drawing.polygons.length - 1), point: -1 });
  drawing.open = drawing.open && drawing.polygon >= 0;
}

function beginPolygon(type) {
  closePolygon();
  keepForUndo();
  drawing.polygons.push({ type, points: [] });
  Object.assign(drawing, { polygon: drawing.polygons.length - 1, point: -1, open: true });
}

/** No more corners are set; what has fewer than three is no polygon. */
function closePolygon() {
  drawing.open = false;
  drawing.polygons = drawing.polygons.filter(({ points }) => points.length >= 3);
  drawing.polygon = Math.min(drawing.polygon, drawing.polygons.length - 1);
  drawing.point = -1;
}

function choosePolygon(place) {
  if (drawing.open) closePolygon();
  Object.assign(drawing, { polygon: place, point: -1 });
}

function deletePolygon(place) {
  if (drawing.open) closePolygon();
  if (place >= drawing.polygons.length) return;
  keepForUndo();
  drawing.polygons.splice(place, 1);
  Object.assign(drawing, { polygon: -1, point: -1 });
}

function inImage([x, y]) {
  const [height, width] = drawing.size;
  return [[x, width], [y, height]].map(([value, most]) => Math.round(10 * Math.min(most, Math.max(0, value))) / 10);
}

/** Set a corner: at the end, or behind another one. */
function addPoint(place, after = chosenPolygon().points.length - 1) {
  keepForUndo();
  chosenPolygon().points.splice(after + 1, 0, inImage(place));
  drawing.point = after + 1;
}

/** A corner halfway to the next one. */
function addPointBehind(point) {
  addPoint(middleBehind(chosenPolygon().points, point), point);
}

function middleBehind(points, point) {
  const [[x0, y0], [x1, y1]] = [points[point], points[(point + 1) % points.length]];
  return [(x0 + x1) / 2, (y0 + y1) / 2];
}

function movePoint(point, place) {
  chosenPolygon().points[point] = inImage(place);
}

/** A polygon that has three corners left goes as a whole. */
function deletePoint(point) {
  if (chosenPolygon().points.length <= 3 && !drawing.open) return deletePolygon(drawing.polygon);
  keepForUndo();
  chosenPolygon().points.splice(point, 1);
  drawing.point = Math.min(point, chosenPolygon().points.length - 1);
  return undefined;
}

/** What is there of a kind, as the service takes it. */
function pointsOf(type) {
  return drawing.polygons.filter((each) => each.type === type).map(({ points }) => points);
}
