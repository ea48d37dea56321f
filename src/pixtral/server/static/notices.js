// Short messages above the composer: errors of the page itself, and things that can be undone.

import { byId, h } from "./dom.js";
import { iconButton } from "./icons.js";

/** Takes back the message with this name. */
export function withdraw(name) {
  byId("notices").querySelector(`[data-name="${name}"]`)?.remove();
}

/**
 * Shows a message until it is closed, or for `seconds`.
 * `action` is [label, function]; a message with a `name` replaces the one that has it.
 */
export function notify(text, { kind = "info", action = null, seconds = 0, name = null } = {}) {
  if (name) withdraw(name);
  const close = iconButton("close", "Dismiss", () => notice.remove());
  const act = action && h("button", { type: "button", class: "text-button", onclick: doIt }, action[0]);
  const notice = h("div", { class: `notice ${kind}`, "data-name": name }, h("p", {}, text), act, close);
  byId("notices").append(notice);
  if (seconds) setTimeout(() => notice.remove(), seconds * 1000);
  return notice;

  function doIt() {
    notice.remove();
    action[1]();
  }
}
