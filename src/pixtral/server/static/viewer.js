// One image as large as the window allows, with the grid that the model sees.

import { h } from "./dom.js";
import { gridded } from "./grid.js";
import { setIcon } from "./icons.js";
import { openDialog } from "./dialog.js";
import { describe } from "./images.js";

/** Opens an image; `urls` shows its bytes. */
export function view(image, urls) {
  const width = shownWidth(image);
  const img = h("img", { alt: image.name });
  const frame = gridded(img, image, width);
  urls.show(img, image.id);
  const grid = h("button", { type: "button", class: "pill", "aria-pressed": "true" }, "Patches");
  setIcon(grid, "grid");
  grid.addEventListener("click", () => {
    const hidden = frame.classList.toggle("bare");
    grid.setAttribute("aria-pressed", String(!hidden));
  });
  const facts = h("p", { class: "facts" }, describe(image));
  openDialog(
    image.name,
    [h("div", { class: "stage" }, frame), h("div", { class: "viewer-foot" }, facts, grid)],
    "viewer",
  );
}

/** As wide as fits; small images are enlarged so that their patches are distinguishable. */
function shownWidth({ width, height }) {
  const room = { width: Math.min(innerWidth - 72, 1200), height: innerHeight - 220 };
  return Math.round(Math.min(room.width, (room.height * width) / height, width * 5));
}
