// Where the page begins: which view is seen, how images get in, and whether the server is well.

import * as api from "./api.js";
import { byId } from "./dom.js";
import { Inspect } from "./inspect.js";
import { Registry } from "./registry.js";
import { askForToken, showWhetherThereIsOne } from "./token.js";

const HEALTH_MS = 15_000;

// One dialog at a time: images that are refused together ask for a token once.
let asking = null;
function askOnce(reason) {
  asking ??= askForToken(reason).finally(() => { asking = null; });
  return asking;
}

const inspect = new Inspect(askOnce);
const registry = new Registry(askOnce, () => inspect.refresh());

function showView() {
  if (location.hash === "#main" && document.querySelector("nav [aria-current]")) return; // the skip link
  const name = location.hash === "#registry" ? "registry" : "inspect";
  for (const view of ["inspect", "registry"]) {
    byId(`view-${view}`).hidden = view !== name;
    const link = document.querySelector(`nav a[href="#${view}"]`);
    if (view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name === "registry" ? "Registry" : "Inspect"} \u00b7 cflow_ray`;
  if (name === "registry") registry.refresh();
}

async function showHealth() {
  let state = "down";
  let text = "Server not reachable";
  try {
    const { status, reason } = await api.health();
    state = status;
    text = status === "ok" ? "Server ready" : `Degraded: ${reason}`;
  } catch (error) {
    if (error.status) text = error.message;
  }
  byId("health").dataset.state = state;
  if (byId("health-text").textContent !== text) byId("health-text").textContent = text;
}

function takeDrops() {
  let depth = 0; // enter and leave also come for what lies inside
  const mark = (change) => {
    depth = change === 0 ? 0 : depth + change;
    document.body.classList.toggle("dropping", depth > 0);
  };
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => hasFiles(event) && mark(1));
  addEventListener("dragleave", (event) => hasFiles(event) && mark(-1));
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark(0);
    give(event.dataTransfer.files);
  });
}

function give(files) {
  if (location.hash === "#registry") location.hash = "#inspect";
  inspect.give(files);
}

byId("files").addEventListener("change", () => {
  give(byId("files").files);
  byId("files").value = ""; // the same file may be chosen again
});
addEventListener("paste", (event) => {
  if (!event.clipboardData?.files.length) return;
  event.preventDefault();
  give(event.clipboardData.files);
});
byId("token-open").addEventListener("click", async () => {
  if (await askOnce("Needed where this server asks for one, and to promote or roll back.")) inspect.refresh();
});
addEventListener("hashchange", showView);

takeDrops();
showWhetherThereIsOne();
showView();
inspect.refresh();
showHealth();
setInterval(() => document.visibilityState === "visible" && showHealth(), HEALTH_MS);
