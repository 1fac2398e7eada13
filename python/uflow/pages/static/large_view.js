// One image, large: a panel a method, with one zoom for all.

function largeImage() {
  return shown[view.place];
}

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

// Keys ----------------------------------------------------------------------------------------------------------------

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
