// The view that scores images: a queue to the server, the session's history, and one image looked at closely.

import * as api from "./api.js";
import { findRegions } from "./contours.js";
import { announce, byId, make, notify, percent } from "./dom.js";
import { History } from "./history.js";
import { draw, drawThumbnail, frameOf, heat, readImage, readMap } from "./picture.js";
import { decide, showRefusal, showRegions, showVerdict, summary } from "./verdict.js";

const AT_ONCE = 2; // requests in flight: the next image travels while one is scored

export class Inspect {
  /** `askForToken` is called with a reason where the server wants one. */
  constructor(askForToken) {
    this.askForToken = askForToken;
    this.history = new History((entry) => this.show(entry), () => this.showNothing());
    this.categories = new Map();
    this.details = new Map(); // promises, by category and version
    this.own = new Map(); // the person's thresholds, by category
    this.queue = [];
    this.inFlight = 0;
    this.shown = null;
    this.turn = 0; // counts what was asked to be shown
    byId("category").addEventListener("change", () => this.describeCategory());
    byId("opacity").addEventListener("input", () => this.redraw());
    addEventListener("resize", () => this.redraw()); // lines are as wide as the screen shows them
    byId("threshold").addEventListener("input", () => this.setOwn(Number(byId("threshold").value)));
    byId("threshold").addEventListener("change", () => this.tellDecision());
  }

  /** Learn what the server can score; keeps what is chosen. */
  async refresh() {
    const select = byId("category");
    const chosen = select.value;
    try {
      const found = await api.categories();
      this.categories = new Map(found.map((one) => [one.category, one]));
      this.details.clear();
      select.replaceChildren(...found.map((one) => make("option", { value: one.category }, one.category)));
      if (this.categories.has(chosen)) select.value = chosen;
      notify(found.length ? "" : "This server has no checkpoint yet. Fit one: cflow-ray fit ...");
    } catch (error) {
      notify(error.message);
      if (error.wantsToken && (await this.askForToken(error.message))) return this.refresh();
    }
    this.describeCategory();
  }

  /** Score files with the chosen category; the first is shown once it is done. */
  give(files) {
    const images = [...files];
    if (!images.length) return;
    const category = byId("category").value;
    if (!category) return notify("Choose a category first: this server has named none yet.");
    const entries = images.map((file, number) => ({ file, name: file.name || "pasted image", category, isFirst: !number }));
    for (const entry of [...entries].reverse()) this.history.add(entry);
    this.queue.push(...entries);
    announce(images.length === 1 ? `Scoring ${entries[0].name}` : `Scoring ${images.length} images`);
    this.work();
  }

  work() {
    while (this.inFlight < AT_ONCE && this.queue.length) {
      this.inFlight += 1;
      this.scoreOne(this.queue.shift()).finally(() => {
        this.inFlight -= 1;
        this.work();
      });
    }
  }

  async scoreOne(entry) {
    const image = await readImage(entry.file);
    if (image) drawThumbnail(entry.thumbnail, image);
    image?.close();
    try {
      entry.answer = await api.score(entry.category, entry.file);
    } catch (error) {
      if (error.wantsToken && (await this.askForToken(error.message))) return this.scoreOne(entry);
      entry.problem = error.message;
    }
    this.sayInHistory(entry);
    if (entry.isFirst && this.history.has(entry)) await this.show(entry);
  }

  /** Look at an entry of the history. */
  async show(entry) {
    this.history.mark(entry);
    const turn = ++this.turn;
    const image = await readImage(entry.file);
    const map = entry.answer?.map_png ? await readMap(entry.answer.map_png) : null;
    const thresholds = entry.answer ? await this.thresholds(entry.answer) : {};
    if (turn !== this.turn) return image?.close(); // another one was chosen meanwhile
    this.shown?.image?.close();
    this.shown = { entry, answer: entry.answer, image, map, heat: map && heat(map), marked: null };
    byId("empty").hidden = true;
    byId("facts").hidden = false;
    for (const part of ["sliders", "regions-card"]) byId(part).hidden = !entry.answer;
    byId("verdict").querySelector("dl").hidden = !entry.answer;
    byId("picture-name").textContent = entry.name;
    if (!entry.answer) return this.showWithoutVerdict(entry, image);
    byId("picture").hidden = false;
    byId("picture").scrollIntoView({ block: "nearest" });
    byId("picture-hint").textContent = image ? "" : "This browser cannot show the format; here is the heat map alone.";
    this.showRates(entry.category, thresholds);
    this.showDecision();
    announce(byId("canvas").getAttribute("aria-label"));
  }

  showWithoutVerdict(entry, image) {
    const reason = entry.problem ?? "It waits for its turn.";
    showRefusal(`${entry.name}: ${reason}`);
    byId("picture").hidden = !image;
    byId("picture-hint").textContent = "";
    if (image) {
      const size = { width: image.width, height: image.height };
      draw(byId("canvas"), { image, map: null, answer: size });
      byId("canvas").setAttribute("aria-label", `${entry.name}, not scored`);
    }
    announce(`${entry.name}: not scored. ${reason}`);
  }

  showNothing() {
    this.turn += 1;
    this.shown?.image?.close();
    this.shown = null;
    byId("picture").hidden = true;
    byId("facts").hidden = true;
    byId("empty").hidden = false;
  }

  /** The threshold that decides for a category: the person's own, or the answer's. */
  thresholdOf(entry) {
    return this.own.get(entry.category) ?? entry.answer.threshold;
  }

  /** A threshold of the person's own for the category that is shown, or null for the checkpoint's again. */
  setOwn(threshold) {
    const { category } = this.shown.entry;
    if (threshold === null) this.own.delete(category);
    else this.own.set(category, threshold);
    this.showDecision();
    for (const entry of this.history.entries) if (entry.category === category) this.sayInHistory(entry);
  }

  showDecision() {
    const { entry, answer, map } = this.shown;
    const threshold = this.thresholdOf(entry);
    const isOwn = this.own.has(entry.category);
    this.shown.threshold = threshold;
    this.shown.regions =
      isOwn && map ? findRegions(map, threshold, frameOf(answer, map)) : answer.regions;
    showVerdict(answer, threshold, isOwn, this.categories.get(entry.category)?.target_fpr);
    showRegions(this.shown.regions, isOwn, (region) => {
      this.shown.marked = region;
      this.redraw();
    });
    byId("canvas").setAttribute("aria-label", summary(entry.name, answer, threshold, this.shown.regions));
    this.showThreshold(threshold, isOwn);
    this.redraw();
  }

  showThreshold(threshold, isOwn) {
    const slider = byId("threshold");
    const text = threshold === null ? "none" : threshold.toFixed(3);
    slider.value = threshold ?? 1;
    slider.setAttribute("aria-valuetext", text);
    byId("threshold-shown").textContent = text;
    byId("threshold-hint").textContent = isOwn
      ? "Your own, for all images of this category in this tab."
      : "The checkpoint's. Move it to see what another would say.";
    for (const button of byId("rates").children) {
      const isThis = button.dataset.own ? isOwn && Number(button.dataset.own) === threshold : !isOwn;
      button.setAttribute("aria-pressed", String(isThis));
    }
  }

  /** A button for the checkpoint's threshold, and one for each other false-alarm rate that has a threshold. */
  showRates(category, thresholds) {
    const target = this.categories.get(category)?.target_fpr;
    const known = Object.keys(thresholds).filter((rate) => Number(rate) !== target);
    const rates = known.filter((rate) => thresholds[rate] !== null).sort((one, other) => Number(one) - Number(other));
    byId("rates-hint").hidden = rates.length === known.length;
    const own = target === undefined ? "Checkpoint's" : `Checkpoint's (${percent(target)})`;
    byId("rates").replaceChildren(
      make("button", { type: "button", onclick: () => { this.setOwn(null); this.tellDecision(); } }, own),
      ...rates.map((rate) => {
        const threshold = thresholds[rate];
        const choose = () => { this.setOwn(threshold); this.tellDecision(); };
        return make("button", { type: "button", "data-own": String(threshold), onclick: choose }, percent(Number(rate)));
      }),
    );
  }

  async thresholds({ category, checkpoint }) {
    const key = `${category}/${checkpoint}`;
    if (!this.details.has(key)) this.details.set(key, api.category(category));
    try {
      return (await this.details.get(key)).thresholds;
    } catch {
      this.details.delete(key);
      return {}; // the slider does without
    }
  }

  tellDecision() {
    announce(byId("canvas").getAttribute("aria-label"));
  }

  redraw() {
    const opacity = Number(byId("opacity").value);
    byId("opacity-shown").textContent = `${opacity} %`;
    if (this.shown?.answer) draw(byId("canvas"), { ...this.shown, opacity: opacity / 100 });
  }

  sayInHistory(entry) {
    if (!entry.answer) {
      if (entry.problem) this.history.say(entry, "Not scored", "problem");
      return;
    }
    const { tone, word } = decide(entry.answer, this.thresholdOf(entry));
    this.history.say(entry, `${word} \u00b7 ${entry.answer.score.toFixed(3)}`, tone);
  }

  describeCategory() {
    const one = this.categories.get(byId("category").value);
    byId("category-hint").textContent = one ? `${one.checkpoint}, input ${one.input_size[1]} \u00d7 ${one.input_size[0]} px` : "";
  }
}
