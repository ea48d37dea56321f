// One picture as large as the window allows, with the grid that the model sees.

import { h } from "./dom.js";
import { gridded } from "./grid.js";
import { setIcon } from "./icons.js";
import { openDialog } from "./dialog.js";
import { describe } from "./pictures.js";

/** Opens a picture; `urls` shows its bytes. */
export function view(picture, urls) {
  const width = shownWidth(picture);
  const image = h("img", { alt: picture.name });
  const frame = gridded(image, picture, width);
  urls.show(image, picture.id);
  const grid = h("button", { type: "button", class: "pill", "aria-pressed": "true" }, "Patches");
  setIcon(grid, "grid");
  grid.addEventListener("click", () => {
    const hidden = frame.classList.toggle("bare");
    grid.setAttribute("aria-pressed", String(!hidden));
  });
  const facts = h("p", { class: "facts" }, describe(picture));
  openDialog(
    picture.name,
    [h("div", { class: "stage" }, frame), h("div", { class: "viewer-foot" }, facts, grid)],
    "viewer",
  );
}

/** As wide as fits; small pictures are enlarged so that their patches can be told apart. */
function shownWidth({ width, height }) {
  const room = { width: Math.min(innerWidth - 72, 1200), height: innerHeight - 220 };
  return Math.round(Math.min(room.width, (room.height * width) / height, width * 5));
}
