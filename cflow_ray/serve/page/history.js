// The session's images, newest first: buttons with a thumbnail, the name and what was said.

import { byId, make } from "./dom.js";

const KEPT = 60;

export class History {
  /** `select` is called with an entry that the person chose, `cleared` when the list was emptied. */
  constructor(select, cleared) {
    this.entries = [];
    this.select = select;
    byId("history-clear").addEventListener("click", () => {
      this.entries.length = 0;
      byId("history").replaceChildren();
      this.showWhetherEmpty();
      cleared();
      byId("files").focus();
    });
  }

  /** Take in an entry: { file, name, category }. */
  add(entry) {
    entry.thumbnail = make("canvas", { width: "96", height: "96", "aria-hidden": "true" });
    entry.said = make("span", { class: "said" }, "Waiting");
    const text = make("span", { class: "text" }, make("span", { class: "name" }, entry.name), make("span", { class: "hint" }, entry.category), entry.said);
    entry.button = make("button", { type: "button", title: entry.name, onclick: () => this.select(entry) }, entry.thumbnail, text);
    this.entries.unshift(entry);
    byId("history").prepend(make("li", {}, entry.button));
    for (const old of this.entries.splice(KEPT)) old.button.parentElement.remove();
    this.showWhetherEmpty();
  }

  /** Say what became of an entry: `tone` is anomaly, normal, undecided or problem. */
  say(entry, text, tone) {
    entry.said.textContent = text;
    entry.button.dataset.tone = tone;
  }

  /** Mark the entry that is shown. */
  mark(entry) {
    for (const one of this.entries) one.button.setAttribute("aria-pressed", String(one === entry));
  }

  has(entry) {
    return this.entries.includes(entry);
  }

  showWhetherEmpty() {
    byId("history-empty").hidden = this.entries.length > 0;
    byId("history-clear").hidden = this.entries.length === 0;
  }
}
