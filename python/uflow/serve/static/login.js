// Logging in: a token that is not known is said on the page.

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = new FormData(byId("login"));
  const response = await fetch("/login", { method: "POST", body }).catch(() => null);
  if (response !== null && response.ok) {
    window.location.assign("/");
    return;
  }
  const answer = response === null ? { error: "the service does not answer" } : await response.json();
  say("refused", `Not logged in: ${answer.error}.`, true);
  byId("token").select();
});

watchHead();
document.documentElement.dataset.ready = "yes";
