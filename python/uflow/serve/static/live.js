// What comes now: asked for every second, drawn where it has changed.

const EVERY_MS = 1000;
const HIDDEN_EVERY_MS = 5000;
let drawnParts = new Map(); // what a tile was drawn from, and the tile, by the part's id
let latest = "";

function showLive(live) {
  showTrouble(live.troubles);
  for (const name of ["good", "look", "reject", "failed"]) byId(`count-${name}`).textContent = live.counts[name].toLocaleString("en");
  drawChart(byId("chart"), live.chart);
  showAlarm(live.chart);
  showTiles(live.parts);
  showLatest(live.parts.find((part) => part.verdict !== "accepted") || live.parts[0]);
  say("fresh", `As of ${new Date().toLocaleTimeString("en-GB")}.`);
}

function showTrouble(lines) {
  byId("trouble").hidden = lines.length === 0;
  const words = lines.join(" · ");
  if (byId("trouble").textContent !== words) byId("trouble").textContent = words;
}

function showAlarm(chart) {
  byId("alarm").hidden = chart.alarm === null;
  if (chart.alarm) {
    const words = alarmText(chart.alarm);
    byId("alarm-text").textContent = `${words[0].toUpperCase()}${words.slice(1)}.`;
  }
  const watched = chart.watched === null ? "no monitor: the calibration has none" : `${chart.watched} watched by the monitor`;
  byId("chart-words").textContent = `last ${chart.values.length}, ${watched}`;
}

function showTiles(parts) {
  const tiles = new Map();
  for (const part of parts) {
    const content = JSON.stringify(part);
    const before = drawnParts.get(part.id);
    tiles.set(part.id, before && before.content === content ? before : { content, tile: makeTile(part) });
  }
  const focused = document.activeElement.closest(".tile a");
  const wanted = [...tiles.values()].map(({ tile }) => tile);
  const shown = [...byId("gallery").children];
  drawnParts = tiles;
  if (wanted.length === shown.length && wanted.every((tile, place) => tile === shown[place])) return;
  byId("gallery").replaceChildren(...wanted);
  if (focused !== null) {
    const again = byId("gallery").querySelector(`a[href="${focused.getAttribute("href")}"]`) || byId("gallery").querySelector("a");
    again.focus({ preventScroll: true });
  }
}

function showLatest(part) {
  if (part === undefined) return;
  const content = JSON.stringify(part);
  if (content === latest) return;
  latest = content;
  const link = make("a", "open");
  link.href = `/parts/${part.id}`;
  const frame = make("span", "frame");
  frame.append(makeLayers(asImage(part, true), 0, false));
  const words = make("span", "words");
  words.append(make("strong", "verdict", part.word), make("span", "name", part.name), make("span", "value", valueOf(part)), make("span", "time", part.time.slice(-8)));
  link.append(frame, words);
  if (part.error) words.append(make("span", "value", part.error));
  byId("latest").dataset.type = part.verdict;
  byId("latest").replaceChildren(link);
}

async function poll() {
  for (;;) {
    try {
      showLive(await ask(ofProduct(`/live.json?shift=${encodeURIComponent(byId("shift").value || "00:00")}`)));
      document.documentElement.dataset.ready = "yes";
    } catch (error) {
      showTrouble([`The service does not answer (${error.message}); what is shown may be old. Trying again.`]);
    }
    await wait(document.hidden ? HIDDEN_EVERY_MS : EVERY_MS);
  }
}

function watchShift() {
  const before = localStorage.getItem("shift");
  if (before !== null) byId("shift").value = before;
  byId("shift").addEventListener("change", () => localStorage.setItem("shift", byId("shift").value));
}

if (byId("restart") !== null) {
  byId("restart").addEventListener("click", async () => {
    try {
      await ask(`/v1/products/${encodeURIComponent(page.product)}/monitor/restart`, null);
    } catch (error) {
      showTrouble([error.message]);
    }
  });
}

watchHead();
watchShift();
watchArrows("#gallery .open", () => getComputedStyle(byId("gallery")).gridTemplateColumns.split(" ").length);
poll();
