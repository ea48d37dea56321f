// The patch grid, drawn over an image.

import { h } from "./dom.js";
import { icon } from "./icons.js";

const SVG = "http://www.w3.org/2000/svg";

/** An <img> in the aspect ratio of its image, `width` CSS pixels wide, with the grid of its patches over it. */
export function gridded(img, { width: across, height: down, grid }, width) {
  const frame = h("span", { class: "gridded" }, img, gridOf(grid.rows, grid.cols, width / grid.cols));
  frame.style.width = `${width}px`;
  frame.style.aspectRatio = `${across} / ${down}`;
  return frame;
}

/** The placeholder of a PDF. */
export function sheet({ name }) {
  return h("span", { class: "sheet" }, icon("document"), h("span", {}, name));
}

/** Lines between the patches; fainter where the patches are small, so that the image stays visible. */
function gridOf(rows, cols, side) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "grid");
  svg.setAttribute("viewBox", `0 0 ${cols} ${rows}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  let d = "";
  for (let col = 1; col < cols; col++) d += `M${col} 0V${rows}`;
  for (let row = 1; row < rows; row++) d += `M0 ${row}H${cols}`;
  for (const name of ["grid-dark", "grid-light"]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    path.setAttribute("d", d);
    if (name === "grid-light") path.setAttribute("transform", `translate(${1 / side} ${1 / side})`); // beside the dark one
    svg.append(path);
  }
  svg.style.opacity = String(Math.min(1, Math.max(0.25, side / 12)));
  return svg;
}
