// What is said of an image: its decision at a threshold, in words, and the facts beside it.

import { byId, make, percent } from "./dom.js";

const ROWS = 20;

/** The decision at a threshold: a tone, a word and a sign, so that colour is never the only mark. */
export function decide(answer, threshold) {
  if (threshold === null) return { tone: "undecided", word: "No decision", sign: "?" };
  if (answer.score > threshold) return { tone: "anomaly", word: "Anomaly", sign: "!" };
  return { tone: "normal", word: "Normal", sign: "\u2713" };
}

/** One sentence for a screen reader and a picture's label. */
export function summary(name, answer, threshold, regions) {
  const { word } = decide(answer, threshold);
  const count = regions.length === 1 ? "1 region" : `${regions.length} regions`;
  return `${name}: ${word}, score ${answer.score.toFixed(3)}, p-value ${answer.p_value.toFixed(3)}, ${count}.`;
}

export function showVerdict(answer, threshold, isOwn, targetFpr) {
  const decision = decide(answer, threshold);
  showDecision(decision.tone, decision.sign, decision.word, reason(answer, isOwn, targetFpr));
  const scale = byId("scale");
  scale.hidden = false;
  scale.style.setProperty("--score", answer.score);
  scale.style.setProperty("--threshold", threshold ?? 1);
  scale.classList.toggle("open", threshold === null);
  const time = Object.values(answer.timings ?? {}).reduce((sum, one) => sum + one, 0);
  const facts = {
    score: answer.score.toFixed(4),
    threshold: threshold === null ? "none" : `${threshold.toFixed(4)}${isOwn ? " (your own)" : ""}`,
    "p-value": answer.p_value.toFixed(4),
    category: answer.category,
    checkpoint: answer.checkpoint,
    size: `${answer.width} \u00d7 ${answer.height} px`,
    time: `${time.toFixed(0)} ms`,
  };
  for (const [name, text] of Object.entries(facts)) byId(`fact-${name}`).textContent = text;
}

/** Say that an image has no verdict. */
export function showRefusal(detail) {
  showDecision("problem", "\u00d7", "Not scored", detail);
  byId("scale").hidden = true;
}

function showDecision(tone, sign, word, why) {
  byId("verdict").dataset.tone = tone;
  byId("decision-sign").textContent = sign;
  byId("decision-text").textContent = word;
  byId("decision-reason").textContent = why;
}

function reason(answer, isOwn, targetFpr) {
  if (isOwn) {
    const { word } = decide(answer, answer.threshold);
    return `By your own threshold. By the checkpoint's: ${word.toLowerCase()}.`;
  }
  if (answer.threshold === null) {
    const rate = targetFpr === undefined ? "its rate" : `a rate of ${percent(targetFpr)}`;
    return `Too few calibration images to promise ${rate} of false alarms. Set a threshold yourself.`;
  }
  return `About ${percent(answer.p_value)} of normal images score at least this high.`;
}

/** List regions; `mark` is called with the one that is pointed at, or null. */
export function showRegions(regions, isOwn, mark) {
  const source = isOwn ? " From the map at your threshold." : "";
  const more = regions.length > ROWS ? ` The ${ROWS} with the highest peaks are listed.` : "";
  const none = regions.length ? "" : "Nothing in the map is above the threshold.";
  byId("regions-hint").textContent = `${none}${source}${more}`.trim();
  byId("regions").hidden = !regions.length;
  byId("regions-rows").replaceChildren(...regions.slice(0, ROWS).map((region, number) => row(region, number + 1, mark)));
}

function row(region, number, mark) {
  const show = () => mark(region);
  const hide = () => mark(null);
  const button = make(
    "button",
    { type: "button", class: "number", "aria-label": `Show region ${number}`, onfocus: show, onblur: hide, onclick: show },
    String(number),
  );
  return make(
    "tr",
    { onpointerenter: show, onpointerleave: hide },
    make("td", {}, button),
    make("td", {}, region.peak.toFixed(3)),
    make("td", {}, Math.round(region.area).toLocaleString("en")),
    make("td", { class: "box" }, region.box.join(", ")),
  );
}
