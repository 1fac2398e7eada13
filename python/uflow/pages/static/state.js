// The page's data, what is chosen, and what follows from alpha. Nothing here touches the page.

const page = JSON.parse(document.getElementById("data").textContent);
const ROUNDING = 1e-9; // p-values and alphas are fractions written in decimals

const state = {
  alpha: page.alpha, // null where no method here is calibrated
  method: 0,
  show: "all",
  category: "",
  kind: "",
  text: "",
  sort: "p",
  maps: false,
};

page.images.forEach((image, index) => {
  image.index = index;
  image.search = image.name.toLowerCase();
});

const hasTruth = page.images.some((image) => image.kind !== null);
const hasLook = page.categories.some((category) => category.look !== null);

function findingOf(image, method = state.method) {
  return image.findings[method];
}

/** Alpha, or the least that an image's calibration can promise where that is more. */
function effectiveAlpha(image) {
  return Math.max(state.alpha, page.categories[image.category].least) + ROUNDING;
}

/** Whether an image is flagged at the alpha chosen; null for a method without a threshold. */
function isFlagged(image, method = state.method) {
  const finding = findingOf(image, method);
  return finding.p === null ? finding.flagged : finding.p <= effectiveAlpha(image);
}

/** Whether somebody should look at an image: beyond its looser limit, but not flagged at the alpha chosen. */
function needsLook(image, method = state.method) {
  const { p } = findingOf(image, method);
  const { look } = page.categories[image.category];
  return look !== null && p !== null && p <= look + ROUNDING && !isFlagged(image, method);
}

/** The regions that are found at the alpha chosen. Weaker ones go first as alpha falls; the strongest one stays. */
function regionsOf(image, method = state.method) {
  const finding = findingOf(image, method);
  if (!isFlagged(image, method) || finding.levels.length === 0) return [];
  if (finding.p === null) return finding.levels[0].regions;
  const alpha = effectiveAlpha(image);
  const level = finding.levels.find((each) => each.alpha + 2 * ROUNDING >= alpha) || finding.levels.at(-1);
  return level.regions.filter((region, place) => place === 0 || region.p <= alpha);
}

function isDefective(image) {
  return image.kind === null ? null : image.kind !== "good";
}

const GROUPS = {
  all: () => true,
  flagged: (image) => isFlagged(image) === true,
  look: (image) => needsLook(image),
  passed: (image) => isFlagged(image) === false,
  misses: (image) => isDefective(image) === true && isFlagged(image) === false,
  alarms: (image) => isDefective(image) === false && isFlagged(image) === true,
};

const byName = new Intl.Collator("en", { numeric: true }).compare;

const ORDERS = {
  p: (a, b) => suspicion(a) - suspicion(b) || findingOf(b).score - findingOf(a).score,
  score: (a, b) => findingOf(b).score - findingOf(a).score,
  name: () => 0,
};

function suspicion(image) {
  const p = findingOf(image).p;
  return p === null ? 0 : p;
}

/** The images of the category, kind and name chosen. */
function chosenImages() {
  const text = state.text.trim().toLowerCase();
  return page.images.filter(
    (image) =>
      (state.category === "" || page.categories[image.category].name === state.category) &&
      (state.kind === "" || image.kind === state.kind) &&
      (text === "" || image.search.includes(text)),
  );
}

/** Those of them that are shown, in order. */
function shownImages() {
  const direction = state.sort.startsWith("-") ? -1 : 1;
  const order = ORDERS[state.sort.replace("-", "")];
  const images = chosenImages().filter(GROUPS[state.show]);
  return images.sort((a, b) => direction * order(a, b) || byName(a.name, b.name));
}

/** Where an image stands by a method's score among all of its category: units differ from method to method. */
function rankOf(image, method) {
  const own = page.images.filter((other) => other.category === image.category);
  const above = own.filter((other) => findingOf(other, method).score > findingOf(image, method).score);
  return `rank ${above.length + 1} of ${own.length}`;
}

// Words ---------------------------------------------------------------------------------------------------------------

function kindText(image) {
  return image.kind === null ? "" : image.kind;
}

/** One word on an image: what the method says, beside what is true where that is known. */
function verdictOf(image, method = state.method) {
  const flagged = isFlagged(image, method);
  if (flagged === null) return { word: "Not judged", type: "none" };
  if (needsLook(image, method)) return { word: isDefective(image) === true ? "Missed, look" : "Look", type: "look" };
  if (isDefective(image) === true && !flagged) return { word: "Missed defect", type: "wrong" };
  if (isDefective(image) === false && flagged) return { word: "False alarm", type: "wrong" };
  return flagged ? { word: "Flagged", type: "flagged" } : { word: "Not flagged", type: "passed" };
}

// Pictures: text in the page until they are looked at -----------------------------------------------------------------

function pictureUrl(name) {
  const element = document.getElementById(name);
  return element === null ? null : `data:image/webp;base64,${element.textContent}`;
}

function photoOf(image) {
  return pictureUrl(`photo-${image.index}`);
}

function mapOf(image, method = state.method) {
  return pictureUrl(`map-${image.index}-${method}`);
}
