// Markdown to blocks: headings, paragraphs, lists, quotes, code, tables, rules. Knows nothing of the page.

const DEEPEST = 8; // lists in quotes in lists ...; what lies deeper is a paragraph
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?= |$)/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( {1,4})(?! )|( +)|$)/;
const DELIMITERS = /^ {0,3}\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;

/**
 * The blocks of a text, in order. Each is {type, raw, ...}: `raw` is its source, by which a block that has not changed
 * is known while an answer grows.
 */
export function parseBlocks(text) {
  return blocksOf(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), 0);
}

function blocksOf(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const [block, end] = blockAt(lines, at, depth);
    blocks.push({ ...block, raw: lines.slice(at, end).join("\n") });
    at = end;
  }
  return blocks;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    const text = line
      .slice(heading[0].length)
      .trim()
      .replace(/(?:^| )#+$/, "");
    return [{ type: "heading", level: heading[1].length, text: text.trim() }, at + 1];
  }
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < DEEPEST && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end, depth)) end++;
  return [
    {
      type: "paragraph",
      text: lines
        .slice(at, end)
        .map((part) => part.trim())
        .join("\n"),
    },
    end,
  ];
}

/** Whether a paragraph ends before this line. */
function interrupts(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || isTable(lines, at)) return true;
  if (depth >= DEEPEST) return false;
  const item = ITEM.exec(line);
  return QUOTE.test(line) || (item !== null && line.length > item[0].length && /^(?:[-*+]|1[.)])$/.test(item[2]));
}

function code(lines, at, [, marks, language]) {
  const close = new RegExp(`^ {0,3}${marks[0]}{${marks.length},}[ ]*$`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) end++;
  const indent = /^ */.exec(lines[at])[0].length;
  const inside = lines.slice(at + 1, end).map((line) => (line.slice(0, indent).trim() ? line : line.slice(indent)));
  const block = { type: "code", language: language.trim().split(/\s/)[0], text: inside.join("\n") };
  return [block, Math.min(end + 1, lines.length)];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [{ type: "quote", blocks: blocksOf(inside, depth + 1) }, end];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at])[2];
  const kind = first.slice(-1);
  const items = [];
  let end = at;
  let loose = false;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || item[2].slice(-1) !== kind || RULE.test(lines[end])) break;
    const indent = item[1].length + item[2].length + (item[3]?.length ?? 1);
    const inside = [lines[end].slice(indent)];
    end++;
    while (end < lines.length) {
      const line = lines[end];
      const blank = !line.trim();
      const indented = /^ */.exec(line)[0].length >= indent;
      const lazy = !blank && !indented && inside.at(-1).trim() && !ITEM.test(line) && !interrupts(lines, end, depth);
      if (!blank && !indented && !lazy) break;
      inside.push(indented ? line.slice(indent) : line);
      end++;
    }
    const trailing = inside.length > 1 && !inside.at(-1).trim();
    const blocks = blocksOf(inside, depth + 1);
    const apart = blocks.filter((block) => block.type === "paragraph").length > 1;
    loose ||= apart || (trailing && end < lines.length && followed(lines, end, kind));
    items.push(blocks);
  }
  return [{ type: "list", ordered: /\d/.test(first), start: parseInt(first, 10) || 0, loose, items }, end];
}

/** Whether the list goes on at this line: then the blank line before it lies between items. */
function followed(lines, at, kind) {
  return ITEM.exec(lines[at])?.[2].slice(-1) === kind;
}

function isTable(lines, at) {
  return (
    at + 1 < lines.length &&
    lines[at].includes("|") &&
    lines[at + 1].length < 2000 &&
    lines[at + 1].includes("-") &&
    DELIMITERS.test(lines[at + 1]) &&
    cells(lines[at]).length === cells(lines[at + 1]).length
  );
}

function table(lines, at) {
  const align = cells(lines[at + 1]).map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left",
  );
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim()) end++;
  const rows = lines.slice(at + 2, end).map((line) => {
    const row = cells(line).slice(0, align.length);
    return [...row, ...Array(align.length - row.length).fill("")];
  });
  return [{ type: "table", align, head: cells(lines[at]), rows }, end];
}

/** The cells of a line; "\|" does not part them. */
function cells(line) {
  const bare = line
    .trim()
    .replace(/^\|/, "")
    .replace(/([^\\]|^)\|$/, "$1");
  return bare.split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}
