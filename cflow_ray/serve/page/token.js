// The dialog that asks for an access token, and the one that asks whether something shall really be done.

import { keepToken, token } from "./api.js";
import { byId } from "./dom.js";

/** Ask for a token; true once one was given. `reason` says why it is needed. */
export function askForToken(reason) {
  const dialog = byId("token-dialog");
  byId("token-reason").textContent = reason;
  byId("token").value = "";
  byId("token-forget").hidden = !token();
  dialog.showModal();
  byId("token").focus();
  return new Promise((settle) => {
    const close = (given) => {
      listening.abort();
      dialog.close();
      byId("token").value = "";
      showWhetherThereIsOne();
      settle(given);
    };
    const listening = new AbortController();
    const { signal } = listening;
    byId("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = byId("token").value.trim();
      if (!text) return byId("token").focus();
      keepToken(text);
      close(true);
    }, { signal });
    byId("token-forget").addEventListener("click", () => { keepToken(""); close(false); }, { signal });
    byId("token-cancel").addEventListener("click", () => close(false), { signal });
    dialog.addEventListener("cancel", (event) => { event.preventDefault(); close(false); }, { signal });
  });
}

export function showWhetherThereIsOne() {
  byId("token-open").textContent = token() ? "Access token set" : "Access token";
}

/** Whether the person says yes. */
export function confirmed(title, text, yes) {
  const dialog = byId("confirm-dialog");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  dialog.showModal();
  return new Promise((settle) => {
    const listening = new AbortController();
    const { signal } = listening;
    const close = (answer) => {
      listening.abort();
      dialog.close();
      settle(answer);
    };
    byId("confirm-yes").addEventListener("click", () => close(true), { signal });
    byId("confirm-no").addEventListener("click", () => close(false), { signal });
    dialog.addEventListener("cancel", (event) => { event.preventDefault(); close(false); }, { signal });
  });
}
