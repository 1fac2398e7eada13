// The history, and pages that only show: keys.

watchHead();
watchArrows(".parts .go", () => 1);
watchPageKeys({
  "/": () => {
    if (byId("name") === null) return false;
    byId("name").focus();
    return undefined;
  },
});
document.documentElement.dataset.ready = "yes";
