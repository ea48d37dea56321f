// Images that are chosen, pasted or dropped anywhere on the page.

import { byId } from "./dom.js";

/** Calls `add(files)` for each set of files. */
export function listenForFiles(add) {
  byId("attach").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", () => {
    add([...byId("files").files]);
    byId("files").value = ""; // the same file may be chosen again
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    add(files);
  });
  listenForDrops(add);
}

function listenForDrops(add) {
  let depth = 0; // enter and leave events come from every element inside
  const enter = (change) => {
    depth = Math.max(0, depth + change);
    byId("drop").hidden = depth === 0;
  };
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => hasFiles(event) && enter(1));
  addEventListener("dragleave", (event) => hasFiles(event) && enter(-1));
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault(); // else the browser would open the file
    enter(-depth);
    add([...event.dataTransfer.files]);
  });
}
