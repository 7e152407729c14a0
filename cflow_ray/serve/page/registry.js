// The view of the registry: what answers for each category, its metrics, its versions, and moving the pointer.

import * as api from "./api.js";
import { announce, byId, make, notify, percent } from "./dom.js";
import { confirmed } from "./token.js";

const HEADLINES = ["image_auroc", "image_f1", "pixel_auroc", "pixel_f1", "aupro"];
const SHARE = /^(image_|pixel_|aupro|aupimo)/; // the metrics that are shares; `images` is a count

export class Registry {
  /** `moved` is called once a pointer has moved. */
  constructor(askForToken, moved) {
    this.askForToken = askForToken;
    this.moved = moved;
    byId("registry-refresh").addEventListener("click", () => this.refresh());
  }

  async refresh() {
    const open = new Set([...byId("categories").querySelectorAll("details[data-category][open]")].map((one) => one.dataset.category));
    try {
      const found = await api.categories();
      byId("categories").replaceChildren(...found.map((one) => this.card(one, open.has(one.category))));
      notify(found.length ? "" : "This server has no checkpoint yet. Fit one: cflow-ray fit ...");
    } catch (error) {
      notify(error.message);
      if (error.wantsToken && (await this.askForToken(error.message))) return this.refresh();
    }
  }

  card(one, isOpen) {
    const body = make("div", { class: "versions" });
    const fill = () => this.fill(body, one.category);
    const details = make("details", { "data-category": one.category, ontoggle: () => details.open && fill() });
    details.append(make("summary", {}, "Versions and history"), body);
    details.open = isOpen;
    const known = Object.keys(one.metrics).filter((name) => typeof one.metrics[name] === "number");
    const others = known.filter((name) => !HEADLINES.includes(name) && !/_(low|high)$/.test(name));
    return make(
      "article",
      { class: "card", "aria-label": one.category },
      make("h3", {}, one.category),
      make("p", { class: "version" }, one.checkpoint),
      ...(one.problem ? [make("p", { class: "notice" }, `A newer version is refused: ${one.problem}`)] : []),
      make(
        "dl",
        {},
        ...HEADLINES.filter((name) => known.includes(name)).map((name) => metric(one.metrics, name)),
        fact("Input", `${one.input_size[1]} \u00d7 ${one.input_size[0]} px`),
        fact("False-alarm rate", percent(one.target_fpr)),
      ),
      ...(others.length ? [allMetrics(one.metrics, others)] : []),
      details,
    );
  }

  async fill(body, category) {
    try {
      this.showVersions(body, await api.category(category));
    } catch (error) {
      body.replaceChildren(make("p", { class: "notice" }, error.message));
    }
  }

  showVersions(body, detail) {
    const before = new Map(detail.history.map((one) => [one.version, one.promoted_at]));
    const rows = [...detail.versions].reverse().map((version) => {
      const isBest = version === detail.checkpoint;
      const state = isBest ? "answers now" : before.has(version) ? `answered before${since(before.get(version))}` : "not promoted";
      const promote = make(
        "button",
        { type: "button", class: "quiet", "aria-label": `Promote ${version}`, onclick: () => this.promote(detail, version) },
        "Promote",
      );
      const name = make("span", { class: "version" }, version);
      return make("li", { class: isBest ? "best" : "" }, make("span", {}, name, make("span", { class: "hint" }, state)), ...(isBest ? [] : [promote]));
    });
    const last = detail.history.find((one) => one.version !== detail.checkpoint)?.version;
    const back = make(
      "button",
      { type: "button", class: "quiet", disabled: !last, onclick: () => this.rollback(detail, last) },
      last ? `Roll back to ${last}` : "Nothing to roll back to",
    );
    body.replaceChildren(make("ol", {}, ...rows), back);
  }

  promote(detail, version) {
    const text = `${detail.category} is answered by ${detail.checkpoint} now. ${version} takes over within seconds, for everyone.`;
    return this.move(detail.category, `Promote ${version}?`, text, "Promote", () => api.promote(detail.category, version));
  }

  rollback(detail, version) {
    const text = `${detail.category} is answered by ${detail.checkpoint} now. ${version} takes over again within seconds, for everyone.`;
    return this.move(detail.category, `Roll back to ${version}?`, text, "Roll back", () => api.rollback(detail.category));
  }

  async move(category, title, text, yes, action) {
    if (!(await confirmed(title, text, yes))) return;
    if (!api.token() && !(await this.askForToken(`${yes} needs an administrator's token.`))) return;
    try {
      const detail = await action();
      announce(`${category} is answered by ${detail.checkpoint}.`);
      await this.refresh();
      this.moved();
    } catch (error) {
      notify(error.message);
      if (error.wantsToken) await this.askForToken(error.message);
    }
  }
}

function fact(name, content) {
  return make("div", {}, make("dt", {}, name), make("dd", {}, content));
}

/** A metric, with its 95 % interval where the fit kept one. */
function metric(metrics, name) {
  const words = name.replaceAll("_", " ").replace(/\b(auroc|aupro|aupimo|ap|f1|tpr|fpr)\b/g, (word) => word.toUpperCase());
  const value = metrics[name];
  if (!SHARE.test(name)) return fact(words[0].toUpperCase() + words.slice(1), value.toLocaleString("en"));
  const [low, high] = [metrics[`${name}_low`], metrics[`${name}_high`]];
  const interval = typeof low === "number" && typeof high === "number" ? `${(100 * low).toFixed(1)}\u2013${percent(high)}` : "";
  const shown = make("span", {}, percent(value, 2), make("span", { class: "hint", title: "95 % interval" }, interval));
  return fact(words[0].toUpperCase() + words.slice(1), shown);
}

function allMetrics(metrics, names) {
  return make("details", {}, make("summary", {}, "More metrics"), make("dl", {}, ...names.map((name) => metric(metrics, name))));
}

function since(time) {
  return time ? `, from ${time.slice(0, 16).replace("T", " ")}` : "";
}
