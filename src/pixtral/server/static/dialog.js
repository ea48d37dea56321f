// Modal dialogs: the browser keeps the focus inside and gives it back, Escape and a click beside them close.

import { h } from "./dom.js";
import { iconButton } from "./icons.js";

/** Opens a dialog and returns it; `closed` is called when it is gone. */
export function openDialog(title, content, className, closed = () => {}) {
  const close = iconButton("close", "Close", () => dialog.close(), "icon-button");
  const dialog = h(
    "dialog",
    { class: `dialog ${className}`, "aria-label": title },
    h("header", { class: "dialog-head" }, h("h2", {}, title), close),
    ...content,
  );
  let pressedBeside = false; // a drag that ends beside the dialog is no click beside it
  dialog.addEventListener("pointerdown", (event) => (pressedBeside = event.target === dialog));
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog && pressedBeside) dialog.close();
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    closed();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
