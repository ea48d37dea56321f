// The icons: strokes on a field of 20 x 20.

import { h } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";

const PATHS = {
  auto: "M10 3a7 7 0 1 0 0 14a7 7 0 0 0 0-14zM10 3v14M10 7h6M10 10h7M10 13h6",
  check: "M4 10.5l4 4l8-9",
  close: "M5 5l10 10M15 5L5 15",
  copy: "M7.5 7.5v-4h9v9h-4M3.5 7.5h9v9h-9z",
  document: "M5.5 2.5h6l3.5 3.5v11.5h-9.5zM11.5 2.5v3.5h3.5M8 10h4.5M8 13h4.5",
  down: "M10 4v12M5 11l5 5l5-5",
  edit: "M4 16l.8-3.6L13 4.2l2.8 2.8l-8.2 8.2zM11.3 5.9l2.8 2.8",
  grid: "M3.5 3.5h13v13h-13zM7.8 3.5v13M12.2 3.5v13M3.5 7.8h13M3.5 12.2h13",
  key: "M12.5 11.5a4 4 0 1 0-3-3L3.5 14.5v2h2.6v-1.8h1.8v-1.8zM13.4 6.6v.01",
  menu: "M3.5 6h13M3.5 10h13M3.5 14h13",
  moon: "M16 12A6.6 6.6 0 0 1 8 4a6.6 6.6 0 1 0 8 8z",
  image: "M3.5 4h13v12h-13zM3.5 13.5l4-4l3.5 3.5l2-2l3.5 3.2M12.6 7.6v.01",
  plus: "M10 4v12M4 10h12",
  retry: "M15.7 8.2A6 6 0 1 0 16 10.6M16 4.5v3.9h-3.9",
  sliders:
    "M3.5 6.5h7M14.5 6.5h2M3.5 13.5h2M9.5 13.5h7M12.5 4.5a2 2 0 1 0 0 4a2 2 0 0 0 0-4zM7.5 11.5a2 2 0 1 0 0 4a2 2 0 0 0 0-4z",
  stop: "M6 6h8v8h-8z",
  sun: "M10 6.5a3.5 3.5 0 1 0 0 7a3.5 3.5 0 0 0 0-7zM10 2.5v1.4M10 16.1v1.4M2.5 10h1.4M16.1 10h1.4M4.7 4.7l1 1M14.3 14.3l1 1M15.3 4.7l-1 1M5.7 14.3l-1 1",
  trash: "M4 6h12M8 6V3.8h4V6M5.5 6l.7 10.2h7.6L14.5 6M8.5 9v4.5M11.5 9v4.5",
  up: "M10 16V4M5 9l5-5l5 5",
  warning: "M10 3.5l7.5 13h-15zM10 8.5v3.6M10 14.3v.01",
};

/** An icon that screen readers do not see. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A button that is an icon alone; its label is read out, and shown when the mouse rests on it. */
export function iconButton(name, label, onclick, kind = "icon-button small") {
  const button = h("button", { type: "button", class: kind, "aria-label": label, title: label, onclick });
  button.append(icon(name));
  return button;
}

/** Adds the icons of elements with data-icon="name". */
export function placeIcons(root) {
  for (const element of root.querySelectorAll("[data-icon]")) setIcon(element, element.dataset.icon);
}

/** Gives an element this icon in place of the one it has. */
export function setIcon(element, name) {
  element.querySelector(":scope > .icon")?.remove();
  element.prepend(icon(name));
}
