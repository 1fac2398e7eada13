// The report page: what is chosen above, and the parts that follow from it.

function showCounts() {
  const images = chosenImages();
  const numbers = Object.fromEntries(
    Object.entries(GROUPS).map(([name, belongs]) => [name, images.filter(belongs).length]),
  );
  for (const chip of document.querySelectorAll("[data-show]")) {
    chip.querySelector(".number").textContent = numbers[chip.dataset.show];
  }
  const good = images.filter((image) => isDefective(image) === false).length;
  const defective = images.filter((image) => isDefective(image) === true).length;
  showShare("count-flagged", numbers.flagged, images.length);
  showShare("count-look", numbers.look, images.length);
  showShare("count-misses", numbers.misses, defective);
  showShare("count-alarms", numbers.alarms, good);
}

function showShare(name, count, total) {
  const part = byId(name);
  part.textContent = total === 0 ? "–" : String(count);
  part.append(make("small", "", total === 0 ? "" : `of ${total} · ${percent(count / total)}`));
}

function showAlpha() {
  const method = page.methods[state.method];
  byId("slider-part").hidden = !method.calibrated;
  byId("no-alpha").hidden = method.calibrated;
  byId("no-alpha").textContent = method.judges
    ? "This model is not calibrated: it has no p-values, and no rate of false alarms is promised. Calibrate it by good images."
    : "This method has no threshold of its own: it orders images, and flags none.";
  for (const part of document.querySelectorAll(".needs-decision")) part.hidden = !method.judges;
  document.querySelector(".counts").hidden = !method.judges;
  if (!method.calibrated) return;
  const slider = byId("alpha");
  slider.setAttribute("aria-valuetext", percent(state.alpha));
  byId("alpha-value").textContent = percent(state.alpha);
  byId("alpha-reset").hidden = state.alpha === page.alpha;
  byId("promise").textContent = promiseText();
}

function promiseText() {
  const counts = page.categories.map((category) => category.good).filter((count) => count !== null);
  const [fewest, most] = [Math.min(...counts), Math.max(...counts)];
  const images = fewest === most ? `${fewest}` : `${fewest} to ${most}`;
  const own = state.alpha === page.alpha ? "the model's own setting" : `the model's own is ${percent(page.alpha)}`;
  return `Flagged: p-value at most α, so about ${percent(state.alpha)} of good parts, or fewer. ${lookText()}Calibrated on ${images} good images; ${own}.`;
}

function lookText() {
  const shares = [...new Set(page.categories.map(({ look }) => look).filter((look) => look !== null))];
  return hasLook ? `Look: at most ${shares.map(percent).join(" or ")}. ` : "";
}

/** All that follows from what is chosen. */
function showAll() {
  for (const chip of document.querySelectorAll("[data-show]")) {
    chip.setAttribute("aria-pressed", String(chip.dataset.show === state.show));
  }
  showAlpha();
  showCounts();
  drawHistograms();
  showGallery();
}

function moveAlpha(alpha) {
  state.alpha = alpha;
  showAlpha();
  showCounts();
  drawHistograms();
  if (state.show === "all") updateTiles();
  else showGallery();
}

// Controls ------------------------------------------------------------------------------------------------------------

function watchTools() {
  for (const chip of document.querySelectorAll("[data-show]")) {
    chip.addEventListener("click", () => choose("show", chip.dataset.show));
  }
  for (const name of ["category", "kind", "sort"]) {
    byId(name).addEventListener("change", (event) => choose(name, event.target.value));
  }
  byId("method").addEventListener("change", (event) => {
    state.show = "all"; // another method may judge nothing
    choose("method", Number(event.target.value));
  });
  byId("search").addEventListener("input", (event) => choose("text", event.target.value));
  byId("show-maps").addEventListener("change", (event) => choose("maps", event.target.checked));
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("clear").addEventListener("click", clearChoice);
}

function choose(name, value) {
  state[name] = value;
  showAll();
}

function clearChoice() {
  Object.assign(state, { show: "all", category: "", kind: "", text: "" });
  for (const name of ["category", "kind", "search"]) byId(name).value = "";
  showAll();
}

function fillSelect(name, entries) {
  byId(name).replaceChildren(...entries.map(([value, text]) => {
    const option = make("option", "", text);
    option.value = value;
    return option;
  }));
}

function fillTools() {
  fillSelect("method", page.methods.map((method, number) => [number, method.name]));
  byId("method-field").hidden = page.methods.length === 1;
  fillSelect("category", [["", "All"], ...page.categories.map(({ name }) => [name, name])]);
  byId("category-field").hidden = page.categories.length === 1;
  const kinds = new Map();
  for (const { kind } of page.images) kinds.set(kind, (kinds.get(kind) || 0) + 1);
  const sorted = [...kinds].sort((a, b) => (b[0] === "good") - (a[0] === "good") || byName(a[0] || "", b[0] || ""));
  fillSelect("kind", [["", "All"], ...sorted.map(([kind, count]) => [kind, `${kind} (${count})`])]);
  const root = document.documentElement;
  root.classList.toggle("without-truth", !hasTruth);
  root.classList.toggle("without-look", !hasLook);
  root.classList.toggle("without-masks", !hasMasks);
}

function watchAlpha() {
  const slider = byId("alpha");
  if (page.alpha === null) return;
  const setSlider = (alpha) => { slider.value = page.alphas.indexOf(alpha); };
  slider.max = page.alphas.length - 1;
  setSlider(page.alpha);
  byId("alpha-least").textContent = percent(page.alphas[0]);
  byId("alpha-most").textContent = percent(page.alphas.at(-1));
  byId("alpha-reset").textContent = `back to ${percent(page.alpha)}`;
  slider.addEventListener("input", () => moveAlpha(page.alphas[slider.value]));
  byId("alpha-reset").addEventListener("click", () => {
    setSlider(page.alpha);
    moveAlpha(page.alpha);
  });
}

function watchTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const open = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).classList.toggle("later", tab !== chosen);
    }
  };
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const next = tabs[(place + step + tabs.length) % tabs.length];
      open(next);
      next.focus();
    });
  });
}

function watchKeys() {
  document.addEventListener("keydown", (event) => {
    if (byId("large").open || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target === byId("search");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      byId("search").focus();
    } else if (event.key === "Escape") {
      clearChoice();
      if (typing) byId("search").blur();
    } else if (!typing && event.key === "ArrowDown" && event.target === document.body) {
      event.preventDefault();
      focusTile(0);
    } else if (typing && (event.key === "ArrowDown" || event.key === "Enter")) {
      event.preventDefault();
      focusTile(0);
    }
  });
}

fillTools();
watchTools();
watchAlpha();
watchTheme();
watchTabs();
watchGallery();
watchLarge();
watchKeys();
showLegend();
showAll();
document.documentElement.dataset.ready = "yes";
