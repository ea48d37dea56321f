// The panel of settings: instructions, detail of images, sampling, and the keys of the keyboard.

import { h } from "./dom.js";
import { openDialog } from "./dialog.js";
import { DETAILS, NUMBERS, cleaned, defaults, fits } from "./settings.js";

const KEYS = [
  ["Enter", "send"],
  ["Shift + Enter", "new line"],
  ["Esc", "stop the answer"],
  ["↑ in an empty field", "edit the last question"],
  ["/", "to the message field"],
  ["Alt + N", "new conversation"],
  ["Alt + ,", "these settings"],
];

/** Opens the panel; `done` gets the settings when it closes. */
export function openSettings(settings, done) {
  const system = h("textarea", { id: "system", rows: "4", placeholder: "How the model should answer" });
  system.value = settings.system;
  const detail = h("select", { id: "detail" }, ...DETAILS.map(([value, text]) => h("option", { value }, text)));
  detail.value = settings.detail;
  const stop = h("textarea", { id: "stop-strings", rows: "2", placeholder: "One to a line" });
  stop.value = settings.stop;
  const numbers = NUMBERS.map((field) => numberField(field, settings.numbers[field.name]));
  const form = h(
    "form",
    { class: "stack", novalidate: true },
    h("label", { for: "system" }, "Instructions", h("small", {}, "system prompt of this conversation")),
    system,
    h("label", { for: "detail" }, "Detail of images", h("small", {}, "for those not sent yet")),
    detail,
    h(
      "fieldset",
      { class: "numbers" },
      h("legend", {}, "Sampling", h("small", {}, "empty: the server’s own")),
      ...numbers.map(({ row }) => row),
    ),
    h("label", { for: "stop-strings" }, "Stop at", h("small", {}, "the answer ends before these")),
    stop,
    h(
      "details",
      { class: "keys" },
      h("summary", {}, "Keyboard"),
      h("dl", {}, ...KEYS.flatMap(([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)])),
    ),
    h(
      "div",
      { class: "dialog-foot" },
      h("button", { type: "button", class: "text-button", onclick: reset }, "Reset all"),
      h("button", { type: "submit", class: "primary" }, "Done"),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const wrong = numbers.find(({ input }) => input.getAttribute("aria-invalid") === "true");
    if (wrong) wrong.input.focus();
    else dialog.close();
  });
  const dialog = openDialog("Settings", [form], "settings-dialog", () => done(read()));

  function read() {
    const values = numbers.map(({ field, input }) => [field.name, input.value === "" ? null : Number(input.value)]);
    return cleaned({
      system: system.value,
      detail: detail.value,
      stop: stop.value,
      numbers: Object.fromEntries(values),
    });
  }

  function reset() {
    const empty = defaults();
    [system.value, detail.value, stop.value] = [empty.system, empty.detail, empty.stop];
    for (const { input, check } of numbers) {
      input.value = "";
      check();
    }
  }
}

function numberField(field, value) {
  const id = `set-${field.name}`;
  const input = h("input", {
    id,
    type: "number",
    step: field.step,
    min: field.min,
    max: field.max,
    inputmode: field.step < 1 ? "decimal" : "numeric",
    placeholder: "auto",
    "aria-describedby": `${id}-hint`,
  });
  input.value = value ?? "";
  const bounds = field.max === undefined ? `a whole number from ${field.min}` : `${field.min} to ${field.max}`;
  const hint = h("small", { id: `${id}-hint` }, field.hint);
  const check = () => {
    const wrong = input.validity.badInput || (input.value !== "" && !fits(field, Number(input.value)));
    input.setAttribute("aria-invalid", String(wrong));
    hint.textContent = wrong ? `expected ${bounds}` : field.hint;
  };
  input.addEventListener("input", check);
  return { field, input, check, row: h("div", { class: "number" }, h("label", { for: id }, field.label), input, hint) };
}
