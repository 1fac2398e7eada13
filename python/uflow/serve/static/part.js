// One part, large: its layers, and what an operator says of it.

const part = asImage(page.part, true);
let asked = false; // for the map

function largeImage() {
  return part;
}

function stepLarge(step) {
  const address = step < 0 ? page.newer : page.older;
  if (address !== null) window.location.assign(address);
}

/** The map costs a judgement of the image: it is asked for when it is first wanted. */
function wantMap() {
  if (asked || Number(byId("opacity").value) === 0 || !part.picture) return;
  asked = true;
  say("map-words", "The image is judged again for its map …");
  const map = makePicture(`/v1/parts/${part.id}/map`, "map");
  map.addEventListener("load", () => say("map-words", ""));
  map.addEventListener("error", () => {
    asked = false;
    map.remove();
    say("map-words", "The map could not be made now.", true);
  });
  byId("stage").querySelector("svg").before(map);
}

async function answer(said) {
  const button = document.querySelector(`[data-answer=${said}]`);
  if (button.disabled) return;
  const wanted = button.getAttribute("aria-pressed") === "true" ? null : said;
  try {
    const kept = await ask(`/v1/parts/${part.id}/answer`, { answer: wanted });
    for (const each of document.querySelectorAll("[data-answer]")) {
      each.setAttribute("aria-pressed", String(each.dataset.answer === kept.answer));
    }
    say("said", kept.answer === null ? "The answer is taken back." : `Kept: ${ANSWERS[kept.answer].toLowerCase()}.`);
  } catch (error) {
    say("said", `Not kept: ${error.message}.`, true);
  }
}

function showPart() {
  document.documentElement.classList.add("without-masks");
  const panel = make("figure", "view");
  const frame = make("div", "window");
  frame.append(makeLayers(part, 0, false));
  panel.append(frame);
  byId("stage").append(panel);
  describeRegions(part);
  showLegend();
  byId("opacity").value = 0;
  byId("opacity").dataset.before = 60;
  applyLayers();
  applyZoom();
}

function fit() {
  fitZoom();
  applyZoom();
}

function watchPart() {
  const clicks = { "zoom-in": zoomIn, "zoom-out": () => zoomBy(1 / 1.5), "zoom-fit": fit };
  for (const [name, act] of Object.entries(clicks)) byId(name).addEventListener("click", act);
  for (const name of ["opacity", "outline"]) byId(name).addEventListener("input", applyLayers);
  byId("opacity").addEventListener("input", wantMap);
  for (const button of document.querySelectorAll("[data-answer]")) {
    button.addEventListener("click", () => answer(button.dataset.answer));
  }
  watchFingers(byId("stage"));
  watchPageKeys({
    ArrowLeft: () => stepLarge(-1),
    ArrowRight: () => stepLarge(1),
    Escape: () => window.location.assign(page.back),
    g: () => { answer("good"); },
    d: () => { answer("defective"); },
    o: () => toggle("outline"),
    m: () => { toggleMap(); wantMap(); },
    "+": () => { zoomIn(); },
    "=": () => { zoomIn(); },
    "-": () => zoomBy(1 / 1.5),
    0: fit,
  });
}

watchHead();
showPart();
watchPart();
document.documentElement.dataset.ready = "yes";
