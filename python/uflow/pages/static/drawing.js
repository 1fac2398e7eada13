// Elements and the layers of an image: photo, map, outlines. Names are set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, className = "", text = null) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== null) element.textContent = text;
  return element;
}

function makeSvg(tag, attributes = {}) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function byId(name) {
  return document.getElementById(name);
}

/** Photo, map and outlines of an image, one upon the other, as wide as what they are put into. */
function makeLayers(image, method, wantsMap) {
  const layers = make("span", "layers");
  layers.style.aspectRatio = `${image.size[1]} / ${image.size[0]}`;
  layers.style.setProperty("--ratio", image.size[1] / image.size[0]);
  const photo = photoOf(image);
  if (photo === null) {
    layers.append(make("span", "no-picture", image.missing || "picture left out"));
  } else {
    layers.append(makePicture(photo, "photo"));
  }
  const map = wantsMap ? mapOf(image, method) : null;
  if (map !== null) layers.append(makePicture(map, "map"));
  const svg = makeSvg("svg", { viewBox: `0 0 ${image.size[1]} ${image.size[0]}`, preserveAspectRatio: "none" });
  svg.setAttribute("aria-hidden", "true");
  layers.append(svg);
  drawOutlines(svg, image, method);
  return layers;
}

function makePicture(url, className) {
  const picture = make("img", className);
  picture.alt = "";
  picture.draggable = false;
  picture.src = url;
  return picture;
}

/** The outlines of what is found at the alpha chosen, and of the defect as labelled. */
function drawOutlines(svg, image, method) {
  svg.replaceChildren();
  if (image.truth) appendPath(svg, image.truth, "true");
  const found = regionsOf(image, method).map((region) => region.path).join("");
  if (found) appendPath(svg, found, "found");
}

function appendPath(svg, path, type) {
  svg.append(makeSvg("path", { d: path, class: `rim ${type}` }), makeSvg("path", { d: path, class: `line ${type}` }));
}
