// The inside of a line of Markdown: text to a tree of strings and {tag, children, href}. Knows nothing of the page.
// What would be HTML elsewhere is text here. Work is bounded for any input: see LONGEST and MOST_MARKS.

const LONGEST = 50_000; // characters of a paragraph beyond which it stays plain
const MOST_MARKS = 1_000; // marks of emphasis beyond which the rest are characters
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const ADDRESS = /https?:\/\/[^\s<>"'`\\]+/y;
const TARGET = // "](address)" or "](<address>)", with or without a title
  /^\]\(\s*(?:<([^<>\n]{0,2000})>|([^\s<>()]{0,2000}(?:\([^\s()]{0,500}\)[^\s<>()]{0,500})?))(?:\s+"[^"]{0,500}")?\s*\)/;
const SPACE = /^\s?$/;
const PUNCTUATION = /^[\p{P}\p{S}]$/u;

/** The tree of a paragraph's text. */
export function parseInline(text) {
  return text.length > LONGEST ? [text] : new Inline(text).parse();
}

/** An address that a link may have, or null. */
export function safeAddress(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.out = []; // strings, nodes, and marks {mark, count, opens, closes}
    this.brackets = []; // places in `out` of "[" that may open a link
    this.marks = 0;
    this.unclosed = new Set(); // lengths of runs of backticks known not to close
  }

  parse() {
    while (this.at < this.text.length) this.#next();
    return joined(emphasized(this.out));
  }

  #next() {
    const char = this.text[this.at];
    if (char === "\\") return this.#escape();
    if (char === "`") return this.#code();
    if (char === "*" || char === "_" || char === "~") return this.#mark(char);
    if (char === "[" || (char === "!" && this.text[this.at + 1] === "[")) return this.#open(char);
    if (char === "]") return this.#close();
    if (char === "<") return this.#angle();
    if (char === "\n") return this.#push({ tag: "br", children: [] }, 1);
    if (char === "h") return this.#bare();
    let end = this.at + 1;
    while (end < this.text.length && !"\\`*_~[]!<\nh".includes(this.text[end])) end++;
    this.#push(this.text.slice(this.at, end), end - this.at);
  }

  #push(item, length) {
    this.out.push(item);
    this.at += length;
  }

  #escape() {
    const next = this.text[this.at + 1] ?? "";
    if (next === "\n") this.#push("", 1);
    else if (ESCAPABLE.test(next)) this.#push(next, 2);
    else this.#push("\\", 1);
  }

  #code() {
    let end = this.at;
    while (this.text[end] === "`") end++;
    const length = end - this.at;
    if (!this.unclosed.has(length)) {
      const close = this.#closing(end, length);
      if (close !== -1) {
        const inside = this.text.slice(end, close).replace(/\n/g, " ");
        const bare = /^ .*[^ ].* $/.test(inside) ? inside.slice(1, -1) : inside;
        return this.#push({ tag: "code", children: [bare] }, close + length - this.at);
      }
      this.unclosed.add(length);
    }
    this.#push("`".repeat(length), length);
  }

  /** Where a run of exactly `length` backticks begins, from `start` on, or -1. */
  #closing(start, length) {
    for (let at = this.text.indexOf("`", start); at !== -1;) {
      let end = at;
      while (this.text[end] === "`") end++;
      if (end - at === length) return at;
      at = this.text.indexOf("`", end);
    }
    return -1;
  }

  #mark(char) {
    let end = this.at;
    while (this.text[end] === char) end++;
    const count = end - this.at;
    if (this.marks >= MOST_MARKS || (char === "~" && count !== 2)) return this.#push(char.repeat(count), count);
    const before = this.text[this.at - 1] ?? "";
    const after = this.text[end] ?? "";
    const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || SPACE.test(before) || PUNCTUATION.test(before));
    const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || SPACE.test(after) || PUNCTUATION.test(after));
    const opens = char === "_" ? left && (!right || PUNCTUATION.test(before)) : left;
    const closes = char === "_" ? right && (!left || PUNCTUATION.test(after)) : right;
    this.marks += 1;
    this.#push({ mark: char, count, opens, closes }, count);
  }

  #open(char) {
    this.brackets.push({ place: this.out.length, image: char === "!" });
    this.#push(char === "!" ? "![" : "[", char === "!" ? 2 : 1);
  }

  #close() {
    const bracket = this.brackets.pop();
    const link = bracket && TARGET.exec(this.text.slice(this.at, this.at + 4000));
    const href = link && safeAddress(link[1] ?? link[2]);
    if (!href) return this.#push("]", 1);
    const children = joined(emphasized(this.out.splice(bracket.place).slice(1)));
    // a remote image is never loaded: the request would reveal to its server that the answer is being read
    this.#push({ tag: "a", href, children: children.length ? children : [href] }, link[0].length);
    if (!bracket.image) this.brackets = []; // no link inside a link
  }

  #angle() {
    const link = /^<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/.exec(this.text.slice(this.at, this.at + 2010));
    const href = link && safeAddress(link[1]);
    if (href) this.#push({ tag: "a", href, children: [link[1]] }, link[0].length);
    else this.#push("<", 1);
  }

  #bare() {
    ADDRESS.lastIndex = this.at;
    const found = /\w/.test(this.text[this.at - 1] ?? "") ? null : ADDRESS.exec(this.text);
    const address = found && withoutTail(found[0]);
    const href = address && safeAddress(address);
    if (href) this.#push({ tag: "a", href, children: [address] }, address.length);
    else this.#push("h", 1);
  }
}

/** An address without the punctuation of the sentence around it. */
function withoutTail(address) {
  const tail = address.includes("(") ? ".,:;!?*_~]" : ".,:;!?*_~])";
  let end = address.length;
  while (end && tail.includes(address[end - 1])) end--;
  return address.slice(0, end);
}

/** Marks that pair become em, strong and del; the others characters again. */
function emphasized(items) {
  const out = [];
  const open = []; // places in `out` of marks that may still open
  for (const item of items) {
    if (!item.mark) {
      out.push(item);
      continue;
    }
    let { count } = item;
    while (item.closes && count > 0) {
      const at = open.findLastIndex((place) => out[place].mark === item.mark && pairs(out[place], item));
      if (at === -1) break;
      const place = open[at];
      const opener = out[place];
      const used = item.mark === "~" ? 2 : Math.min(2, opener.count, count);
      const tag = item.mark === "~" ? "del" : used === 2 ? "strong" : "em";
      const children = joined(out.splice(place + 1));
      open.length = at + 1;
      opener.count -= used;
      count -= used;
      if (opener.count === 0) {
        out.pop();
        open.pop();
      }
      out.push({ tag, children });
    }
    if (count > 0) {
      if (item.opens) open.push(out.length);
      out.push({ ...item, count });
    }
  }
  return out;
}

/** CommonMark's rule of three: *foo**bar* is one em. */
function pairs(opener, closer) {
  const both = (opener.opens && opener.closes) || (closer.opens && closer.closes);
  return !both || (opener.count + closer.count) % 3 !== 0 || (opener.count % 3 === 0 && closer.count % 3 === 0);
}

/** Marks that are left written out, and neighbouring strings made one. */
function joined(items) {
  const out = [];
  for (const item of items) {
    const piece = item.mark ? item.mark.repeat(item.count) : item;
    if (typeof piece === "string" && typeof out.at(-1) === "string") out[out.length - 1] += piece;
    else if (piece !== "") out.push(piece);
  }
  return out;
}
