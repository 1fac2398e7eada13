// What all pages of the service have: their data, requests, light or dark, keys that are not typed into a field.

const page = readData();

function readData() {
  const element = byId("data");
  return element === null ? null : JSON.parse(element.textContent);
}

/** The address of something of the page's product. */
function ofProduct(rest) {
  return `/products/${encodeURIComponent(page.product)}${rest}`;
}

/** What the service answers, from JSON; with content it is sent, as JSON. An error has the service's words. */
async function ask(address, content) {
  const options = content === undefined ? {} : { method: "POST", body: JSON.stringify(content) };
  const response = await fetch(address, options);
  if (response.status === 401) window.location.assign("/login");
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error), { answer });
  return answer;
}

function wait(milliseconds) {
  return new Promise((resolve) => { setTimeout(resolve, milliseconds); });
}

/** Say what became of something, in a line of the page. */
function say(name, text, failed = false) {
  byId(name).textContent = text;
  byId(name).classList.toggle("refused", failed);
}

/** What the head of each page does. */
function watchHead() {
  rememberTheme();
  const button = byId("logout");
  // Not by a form: from pages that give no referrer it does not say which site it comes from, and is refused.
  if (button !== null) button.addEventListener("click", () => fetch("/logout", { method: "POST" }).then(() => window.location.assign("/")));
}

function rememberTheme() {
  const root = document.documentElement;
  const before = localStorage.getItem("theme");
  if (before !== null) root.dataset.theme = before;
  watchTheme();
  byId("theme").addEventListener("click", () => localStorage.setItem("theme", root.dataset.theme));
}

/** Acts on keys, by name; not while somebody types, and not on keys that the browser has for itself. */
function watchPageKeys(acts) {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input:not([type=range], [type=checkbox]), select, textarea");
    const sliding = event.target.matches("input[type=range]") && /^(Arrow|Home|End)/.test(event.key);
    if (event.ctrlKey || event.metaKey || event.altKey || typing || sliding) return;
    const act = acts[event.key] || acts[event.key.toLowerCase()];
    if (!act || act(event) === false) return;
    event.preventDefault();
  });
}

/** Arrows move among links, in one column or several; from elsewhere, down goes to the first. */
function watchArrows(chosen, columns) {
  const move = (event, by) => {
    const all = [...document.querySelectorAll(chosen)];
    const place = all.indexOf(event.target.closest(chosen));
    const next = place >= 0 ? all[place + by] : event.key === "ArrowDown" ? all[0] : undefined;
    if (next === undefined) return false;
    next.focus();
    return true;
  };
  watchPageKeys({
    ArrowDown: (event) => move(event, columns()),
    ArrowUp: (event) => move(event, -columns()),
    ArrowRight: (event) => columns() > 1 && move(event, 1),
    ArrowLeft: (event) => columns() > 1 && move(event, -1),
  });
}
