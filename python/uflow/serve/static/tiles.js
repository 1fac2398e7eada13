// Parts as `drawing.js` draws them, and small pictures of them.

/** A part from the service, as an image to draw. */
function asImage(part, large = false) {
  return { ...part, large, missing: part.verdict === "failed" ? "no picture" : "picture not kept" };
}

function photoOf(image) {
  return image.picture ? `/v1/parts/${image.id}/picture${image.large ? "?size=large" : ""}` : null;
}

function mapOf() {
  return null; // asked for by itself: it costs a judgement
}

function regionsOf(image) {
  return image.regions;
}

const ANSWERS = { good: "Good after all", defective: "Was defective" };

function valueOf(part) {
  if (part.answer) return ANSWERS[part.answer];
  return part.p === null ? "" : `p ${pText(part.p)}`;
}

function makeTile(part) {
  const tile = make("li", "tile");
  tile.dataset.type = part.verdict;
  const link = make("a", "open");
  link.href = `/parts/${part.id}`;
  link.setAttribute("aria-label", [part.name, part.word, valueOf(part), part.time].filter(Boolean).join(", "));
  const frame = make("span", "frame");
  frame.append(makeLayers(asImage(part), 0, false));
  const caption = make("span", "caption");
  caption.append(make("span", "name", part.name), make("span", "verdict", part.word), make("span", "value", valueOf(part)));
  caption.title = `${part.name}, ${part.time}`;
  link.append(frame, caption);
  tile.append(link);
  return tile;
}
