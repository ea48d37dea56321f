// The content of an empty page.

import { byId, h } from "./dom.js";

const QUESTIONS = ["What is in the picture?", "What colour is the star?", "How many shapes are there?"];

/** Fills the welcome section; with the embedded model it offers the packaged image: `ask(file, question)`. */
export function fillWelcome(demo, ask) {
  const address = new URL("demo.png", import.meta.url);
  const offer =
    demo &&
    h(
      "div",
      { class: "offer" },
      h("img", { src: address.pathname, alt: "A red circle, a blue square and a green star" }),
      h(
        "div",
        {},
        h(
          "p",
          {},
          "The small model inside the package is answering. It knows coloured shapes and nothing else. Try it on this image:",
        ),
        h(
          "div",
          { class: "pills" },
          ...QUESTIONS.map((question) =>
            h("button", { type: "button", class: "pill", onclick: () => take(question) }, question),
          ),
        ),
      ),
    );
  byId("welcome").replaceChildren(
    h("h2", {}, "Ask about an image"),
    h(
      "p",
      {},
      "Drop images anywhere, paste them, or add them below. The grid over each shows the patches that the model sees, and what they cost.",
    ),
    ...(offer ? [offer] : []),
  );

  async function take(question) {
    const blob = await (await fetch(address)).blob();
    await ask(new File([blob], "demo.png", { type: "image/png" }), question);
  }
}
