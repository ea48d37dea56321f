// The dialog for the API key.

import { h } from "./dom.js";
import { openDialog } from "./dialog.js";
import { apiKey, keyIsKept, setApiKey } from "./key.js";

/** Opens the dialog, once; `taken` is called with a new key in place. `reason` is shown above the field. */
export function askForKey(reason, taken) {
  if (document.querySelector("dialog.key-dialog")) return;
  const field = h("input", {
    id: "api-key",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
  });
  field.value = apiKey();
  const keep = h("input", { type: "checkbox", id: "keep-key" });
  keep.checked = keyIsKept();
  const form = h(
    "form",
    { class: "stack" },
    h("p", { class: "muted" }, reason),
    h("label", { for: "api-key" }, "API key"),
    field,
    h("label", { class: "check" }, keep, "Remember it on this device"),
    h(
      "div",
      { class: "dialog-foot" },
      apiKey() && h("button", { type: "button", class: "text-button", onclick: () => take("") }, "Forget the key"),
      h("button", { type: "submit", class: "primary" }, "Use this key"),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    take(field.value.trim());
  });
  const dialog = openDialog("API key", [form], "key-dialog");
  field.focus();

  function take(key) {
    setApiKey(key, keep.checked);
    dialog.close();
    if (key) taken();
  }
}
