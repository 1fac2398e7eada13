// The small pictures: chosen, sorted, drawn as they come into sight.

const TILES_AT_ONCE = 48;
const TILES_PRINTED = 120;

let shown = []; // images, in the order shown
let drawn = 0; // how many of them have a tile

function showGallery() {
  shown = shownImages();
  drawn = 0;
  byId("gallery").replaceChildren();
  drawTiles(TILES_AT_ONCE);
  byId("empty").hidden = shown.length > 0;
  const total = page.images.length;
  byId("shown").textContent = shown.length === total ? `${total} images` : `${shown.length} of ${total} images`;
  byId("printed").textContent =
    shown.length > TILES_PRINTED ? `Printed: the first ${TILES_PRINTED} of ${shown.length} images, in the order shown.` : "";
}

function drawTiles(count) {
  const until = Math.min(shown.length, drawn + count);
  const fragment = document.createDocumentFragment();
  for (; drawn < until; drawn += 1) fragment.append(makeTile(shown[drawn], drawn));
  byId("gallery").append(fragment);
}

function makeTile(image, place) {
  const tile = make("li", "tile");
  const button = make("button", "open");
  button.type = "button";
  button.dataset.place = place;
  const frame = make("span", "frame");
  frame.append(makeLayers(image, state.method, state.maps));
  const caption = make("span", "caption");
  caption.append(
    make("span", "name", image.name.split("/").pop()),
    make("span", "verdict"),
    make("span", "value"),
    make("span", "kind", kindText(image)),
  );
  caption.title = image.name;
  button.append(frame, caption);
  tile.append(button);
  captionTile(tile, image);
  return tile;
}

function captionTile(tile, image) {
  const { word, type } = verdictOf(image);
  const finding = findingOf(image);
  const value = finding.p === null ? `score ${scoreText(finding.score)}` : `p ${pText(finding.p)}`;
  tile.dataset.type = type;
  tile.querySelector(".verdict").textContent = type === "none" ? "" : word;
  tile.querySelector(".value").textContent = value;
  tile.querySelector(".open").setAttribute("aria-label", [image.name, word, kindText(image), value].filter(Boolean).join(", "));
}

/** Alpha has moved: the tiles that there are, without drawing them anew. */
function updateTiles() {
  [...byId("gallery").children].forEach((tile, place) => {
    captionTile(tile, shown[place]);
    drawOutlines(tile.querySelector("svg"), shown[place], state.method);
  });
}

function focusTile(place) {
  if (place < 0 || place >= shown.length) return;
  if (place >= drawn) drawTiles(place - drawn + TILES_AT_ONCE);
  const button = byId("gallery").children[place].querySelector(".open");
  button.focus();
  button.scrollIntoView({ block: "nearest" });
}

function columnsOfGallery() {
  return getComputedStyle(byId("gallery")).gridTemplateColumns.split(" ").length;
}

/** Frames in the shape of the middle one of all images: most parts are photographed alike. */
function shapeFrames() {
  const ratios = page.images.map((image) => image.size[1] / image.size[0]).sort((a, b) => a - b);
  const middle = ratios[Math.floor(ratios.length / 2)];
  byId("gallery").style.setProperty("--frame", Math.min(1.6, Math.max(0.75, middle)));
}

function watchGallery() {
  shapeFrames();
  byId("gallery").addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (button) openLarge(Number(button.dataset.place));
  });
  byId("gallery").addEventListener("keydown", (event) => {
    const button = event.target.closest(".open");
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columnsOfGallery(), ArrowDown: columnsOfGallery() };
    if (!button || !(event.key in steps)) return;
    event.preventDefault();
    focusTile(Number(button.dataset.place) + steps[event.key]);
  });
  new IntersectionObserver(
    (entries) => {
      if (entries.some((entry) => entry.isIntersecting)) drawMore();
    },
    { rootMargin: "1000px" },
  ).observe(byId("more"));
  window.addEventListener("beforeprint", () => drawTiles(Math.max(0, TILES_PRINTED - drawn)));
}

/** More tiles until the end of the list is out of sight. */
function drawMore() {
  if (drawn >= shown.length || byId("images").hidden) return;
  drawTiles(TILES_AT_ONCE);
  requestAnimationFrame(() => {
    if (byId("more").getBoundingClientRect().top < window.innerHeight + 1000) drawMore();
  });
}
