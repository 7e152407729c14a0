// Building and finding elements. Text is always set as text, never as markup.

export function byId(id) {
  return document.getElementById(id);
}

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Tell a screen reader; the same words twice are told twice. */
export function announce(text) {
  const announcer = byId("announcer");
  announcer.textContent = announcer.textContent === text ? `${text}\u00a0` : text;
}

/** Show a problem above everything, or hide it with an empty text. */
export function notify(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

export function percent(share, digits = 1) {
  return `${(100 * share).toFixed(digits).replace(/\.0+$/, "")} %`;
}
