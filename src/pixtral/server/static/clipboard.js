// Copying to the clipboard, with feedback.

import { announce, h } from "./dom.js";
import { iconButton, setIcon } from "./icons.js";

/** A button that copies the result of `text()`. */
export function copyButton(text, label) {
  const button = iconButton("copy", label, () => copyFrom(button, text()));
  return button;
}

/** Copies and shows it on the button. */
export async function copyFrom(button, text) {
  const done = await copy(text);
  setIcon(button, done ? "check" : "warning");
  announce(done ? "Copied" : "The browser does not allow copying");
  setTimeout(() => setIcon(button, "copy"), 1500);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // no clipboard where the page came over plain HTTP
  }
}

function copyBySelection(text) {
  const focused = document.activeElement;
  const field = h("textarea", { class: "unseen", "aria-hidden": "true" });
  field.value = text;
  (focused?.closest("dialog") ?? document.body).append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}
