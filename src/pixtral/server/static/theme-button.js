// The button that goes from the system's theme to light to dark.

import { byId } from "./dom.js";
import { setIcon } from "./icons.js";

const THEMES = [
  ["system", "auto"],
  ["light", "sun"],
  ["dark", "moon"],
];

/** Makes the button work; theme.js has set the theme already. */
export function startTheme() {
  const button = byId("theme");
  show(button);
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.findIndex(([name]) => name === current()) + 1) % THEMES.length][0];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("pixtral.theme", next);
    } catch {
      // storage is switched off: it holds until the page is closed
    }
    show(button);
  });
}

const current = () => document.documentElement.dataset.theme ?? "system";

function show(button) {
  const [name, icon] = THEMES.find(([theme]) => theme === current());
  setIcon(button, icon);
  button.querySelector("span").textContent = `Theme: ${name}`;
}
