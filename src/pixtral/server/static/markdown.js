// Markdown as elements. Text only ever becomes text nodes; a link can be http, https or mailto; nothing is loaded.

import { h } from "./dom.js";
import { copyButton } from "./clipboard.js";
import { parseBlocks } from "./markdown-blocks.js";
import { parseInline } from "./markdown-inline.js";

/** Shows a text that may grow; blocks that have not changed keep their elements, and what is selected in them. */
export class Prose {
  #blocks = [];

  constructor() {
    this.element = h("div", { class: "prose" });
  }

  show(text) {
    const blocks = parseBlocks(text);
    let same = 0;
    while (
      same < blocks.length &&
      this.#blocks[same]?.raw === blocks[same].raw &&
      this.#blocks[same].type === blocks[same].type
    )
      same++;
    while (this.element.childNodes.length > same) this.element.lastChild.remove();
    for (const block of blocks.slice(same)) this.element.append(elementOf(block));
    this.#blocks = blocks;
  }
}

const MAKERS = {
  paragraph: (block) => h("p", {}, ...inline(block.text)),
  heading: (block) => h(`h${Math.min(6, block.level + 2)}`, { class: `h${block.level}` }, ...inline(block.text)),
  rule: () => h("hr"),
  quote: (block) => h("blockquote", {}, ...block.blocks.map(elementOf)),
  code: (block) =>
    h(
      "figure",
      { class: "code" },
      h(
        "figcaption",
        {},
        h("span", {}, block.language || "text"),
        copyButton(() => block.text, "Copy the code"),
      ),
      h("pre", { tabindex: "0" }, h("code", {}, block.text)),
    ),
  list: (block) => {
    const items = block.items.map((blocks) => h("li", {}, ...blocks.flatMap((inner) => itemNodes(inner, block.loose))));
    return block.ordered ? h("ol", { start: block.start }, ...items) : h("ul", {}, ...items);
  },
  table: (block) =>
    h(
      "div",
      { class: "table", tabindex: "0" },
      h(
        "table",
        {},
        h("thead", {}, row("th", block.head, block.align)),
        h("tbody", {}, ...block.rows.map((cells) => row("td", cells, block.align))),
      ),
    ),
};

function elementOf(block) {
  return MAKERS[block.type](block);
}

/** In a list without blank lines a paragraph is bare text. */
function itemNodes(block, loose) {
  return block.type === "paragraph" && !loose ? inline(block.text) : [elementOf(block)];
}

function row(tag, cells, align) {
  return h("tr", {}, ...cells.map((cell, index) => h(tag, { class: `to-${align[index]}` }, ...inline(cell))));
}

function inline(text) {
  return parseInline(text).map(nodeOf);
}

function nodeOf(item) {
  if (typeof item === "string") return document.createTextNode(item);
  const children = item.children.map(nodeOf);
  if (item.tag !== "a") return h(item.tag, {}, ...children);
  return h(
    "a",
    { href: item.href, target: "_blank", rel: "noopener noreferrer nofollow", title: item.href },
    ...children,
  );
}
