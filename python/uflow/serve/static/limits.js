// The slider of alpha, what it would have flagged today, and teaching.

const limits = page.limits;
const alphas = limits.alphas;
const looks = [null, ...limits.looks]; // not set: as the model has it
let serves = null; // what is set when the page opens, or is saved
let counting = 0; // the last question: answers to earlier ones come too late

function chosen() {
  return { alpha: alphas[byId("alpha").value], look_alpha: looks[byId("look").value] };
}

function nearest(values, wanted) {
  return values.reduce((best, value, place) => (Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? place : best), 0);
}

/** The sliders at what serves; numbers that they do not offer are the nearest that they do. */
function setSliders() {
  byId("alpha").value = nearest(alphas, Math.max(limits.alpha, limits.least));
  byId("look").value = limits.look_alpha === null ? 0 : 1 + nearest(limits.looks, limits.look_alpha);
  serves = chosen();
  showLimits();
}

async function showLimits() {
  const { alpha, look_alpha: look } = chosen();
  const shown = { alpha: percent(alpha), look: look === null ? "not set" : percent(look) };
  for (const [name, words] of Object.entries(shown)) {
    byId(`${name}-value`).textContent = words;
    byId(name).setAttribute("aria-valuetext", words);
  }
  const usable = look === null || look > alpha;
  const same = alpha === serves.alpha && look === serves.look_alpha;
  byId("save").disabled = !page.may_administer || !usable || same;
  counting += 1;
  const own = counting;
  try {
    const found = await ask(ofProduct(`/flagged.json?alpha=${alpha}${look === null ? "" : `&look=${look}`}`));
    if (own !== counting) return;
    say("alpha-today", todayText(found.alpha, found.parts, "rejected"));
    if (!usable) say("look-today", "The limit of look is to be above α.", true);
    else say("look-today", look === null ? "" : todayText(found.look - found.alpha, found.parts, "to look at"));
  } catch (error) {
    say("alpha-today", error.message, true);
  }
}

function todayText(count, total, words) {
  return total === 0 ? "No part with a p-value has come today." : `Today: ${count} of ${total} parts ${words}, ${percent(count / total)}.`;
}

async function save() {
  try {
    const { saved } = await ask(ofProduct("/limits"), chosen());
    say("said", `Saved in ${saved}. It is taken over …`);
    await taken(chosen());
  } catch (error) {
    say("said", `Not saved: ${error.message}.`, true);
  }
}

/** Wait until what is saved serves. */
async function taken({ alpha }) {
  for (let turn = 0; turn < 30; turn += 1) {
    await wait(1000);
    const state = await ask(ofProduct("/state.json"));
    if (Math.abs(state.limits.alpha - alpha) < 1e-9) {
      Object.assign(limits, state.limits);
      setSliders();
      say("said", "Saved, and serves.");
      return;
    }
    if (state.trouble !== null) throw new Error(`it is not taken over: ${state.trouble}`);
  }
  say("said", "Saved. It does not serve yet: see the live page for what is wrong.");
}

// Teaching ------------------------------------------------------------------------------------------------------------

async function teach() {
  byId("teach").disabled = true;
  try {
    await ask(ofProduct("/teach"), null);
    await followLesson();
  } catch (error) {
    say("lesson", `Nothing was learnt: ${error.message}.`, true);
  }
}

async function followLesson() {
  for (;;) {
    const { lesson, waiting } = await ask(ofProduct("/state.json"));
    say("lesson", lesson.text, lesson.failed);
    byId("waiting").textContent = waiting;
    byId("waiting-words").textContent = waiting === 1 ? "part waits" : "parts wait";
    byId("teach").disabled = lesson.running || waiting === 0 || !page.may_administer;
    if (!lesson.running) return;
    await wait(500);
  }
}

if (alphas.length > 0) {
  byId("alpha").max = alphas.length - 1;
  byId("look").max = looks.length - 1;
  for (const name of ["alpha", "look"]) byId(name).addEventListener("input", showLimits);
  byId("reset").addEventListener("click", setSliders);
  byId("save").addEventListener("click", save);
  setSliders();
}
byId("teach").addEventListener("click", teach);
watchHead();
followLesson();
document.documentElement.dataset.ready = "yes";
