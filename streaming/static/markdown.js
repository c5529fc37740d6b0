/**
 * The little of Markdown that models write, as DOM nodes. Text only ever becomes text nodes and links only ever lead
 * to http or https, so nothing in an answer can be markup or code.
 */

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^(\s*)(?:([-*+])|(\d{1,9})[.)])(\s+|$)(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const MAX_DEPTH = 6;

/** Show `text` in `element`. Blocks that did not change since the last call keep their nodes. */
export function render(element, text) {
  const sources = split(text);
  const shown = (element.blocks ??= []);
  let same = 0;
  while (same < sources.length && shown[same] === sources[same]) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  for (const source of sources.slice(same)) element.append(block(source.split("\n"), 0));
  element.blocks = sources;
}

/** The sources of the top-level blocks. */
function split(text) {
  const blocks = [];
  let lines = [];
  let fence = null;
  const end = () => {
    if (lines.length) blocks.push(lines.join("\n"));
    lines = [];
  };
  for (const line of text.replace(/\r\n?/g, "\n").split("\n")) {
    const opens = FENCE.exec(line);
    if (fence) {
      lines.push(line);
      if (closes(line, fence)) {
        fence = null;
        end();
      }
    } else if (opens && !(inList(lines) && /^\s/.test(line))) {
      end();
      fence = opens[1];
      lines.push(line);
    } else if (!line.trim()) {
      if (inList(lines)) lines.push(line);
      else end();
    } else {
      if (startsBlock(line, lines)) end();
      lines.push(line);
    }
  }
  end();
  return blocks.map((source) => source.trimEnd());
}

const closes = (line, fence) => line.trim().startsWith(fence) && !line.trim().slice(fence.length).replaceAll(fence[0], "");
const inList = (lines) => lines.length > 0 && ITEM.test(lines[0]) && !RULE.test(lines[0]);

function startsBlock(line, lines) {
  if (!lines.length) return false;
  if (inList(lines)) {
    const afterBlank = !lines.at(-1).trim();
    return !ITEM.test(line) && !/^\s/.test(line) && (afterBlank || HEADING.test(line));
  }
  if (HEADING.test(line) || RULE.test(line) || HEADING.test(lines[0])) return true;
  if (ITEM.test(line)) return true;
  return QUOTE.test(line) !== QUOTE.test(lines[0]);
}

function block(lines, depth) {
  const first = lines[0];
  if (FENCE.test(first)) return code(lines);
  const heading = HEADING.exec(first);
  if (heading) return node(`h${Math.min(6, heading[1].length + 2)}`, inline(heading[2]));
  if (RULE.test(first)) return node("hr");
  if (QUOTE.test(first) && depth < MAX_DEPTH) {
    const inner = lines.map((line) => QUOTE.exec(line)?.[1] ?? line).join("\n");
    return node("blockquote", split(inner).map((source) => block(source.split("\n"), depth + 1)));
  }
  if (ITEM.test(first) && depth < MAX_DEPTH) return list(lines, depth);
  return node("p", inline(lines.join("\n")));
}

function code(lines) {
  const [, fence, language] = FENCE.exec(lines[0]);
  const isClosed = lines.length > 1 && closes(lines.at(-1), fence);
  const text = lines.slice(1, isClosed ? -1 : undefined).join("\n");
  const figure = node("figure", [node("pre", [node("code", [text])])]);
  figure.className = "code";
  const caption = node("figcaption", [node("span", [language || "text"])]);
  const copy = node("button", ["Copy"]);
  copy.type = "button";
  copy.addEventListener("click", () => copyText(text, copy));
  caption.append(copy);
  figure.prepend(caption);
  return figure;
}

/** Put `text` on the clipboard, and say so on the button for a moment. */
export async function copyText(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = label), 1200);
}

function list(lines, depth) {
  const [, indent, , number] = ITEM.exec(lines[0]);
  const element = node(number ? "ol" : "ul");
  if (number && number !== "1") element.start = Number(number);
  let item = [];
  const end = () => {
    if (item.length) element.append(listItem(item, depth));
    item = [];
  };
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && match[1].length <= indent.length + 1) {
      end();
      item.push(match[5]);
    } else item.push(line);
  }
  end();
  return element;
}

function listItem([first, ...rest], depth) {
  const indents = rest.filter((line) => line.trim()).map((line) => /^\s*/.exec(line)[0].length);
  const cut = Math.min(...indents, 8);
  const sources = split([first, ...rest.map((line) => line.slice(cut))].join("\n"));
  const blocks = sources.map((source) => block(source.split("\n"), depth + 1));
  const children = blocks[0]?.tagName === "P" ? [...blocks[0].childNodes, ...blocks.slice(1)] : blocks;
  return node("li", children);
}

const INLINE = [
  [/^(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)/, (m) => node("code", [m[2].replace(/^ (.+) $/, "$1")])],
  [/^\*\*(?=\S)([\s\S]*?\S)\*\*/, (m) => node("strong", inline(m[1]))],
  [/^__(?=\S)([\s\S]*?\S)__(?!\w)/, (m) => node("strong", inline(m[1]))],
  [/^\*(?=[^\s*])([^*]*[^\s*])\*(?!\*)/, (m) => node("em", inline(m[1]))],
  [/^\[([^\]\n]{1,500})\]\((https?:\/\/[^\s()<>]{1,2000})\)/, (m) => link(m[2], m[1])],
  [/^https?:\/\/[^\s<>()"'`\]]{1,2000}[^\s<>()"'`\].,;:!?*]/, (m) => link(m[0], m[0])],
];

/** Text with code, emphasis and links, as a list of strings and nodes. */
function inline(text) {
  const parts = [];
  let plain = "";
  for (let at = 0; at < text.length; ) {
    const found = "`*_[h".includes(text[at]) && match(text, at);
    if (found) {
      if (plain) parts.push(plain);
      plain = "";
      parts.push(found[1]);
      at += found[0];
    } else plain += text[at++];
  }
  if (plain) parts.push(plain);
  return parts;
}

function match(text, at) {
  if ("_h".includes(text[at]) && /\w/.test(text[at - 1] ?? "")) return null;
  const rest = text.slice(at, at + 1500);
  for (const [pattern, make] of INLINE) {
    const found = pattern.exec(rest);
    if (found) return [found[0].length, make(found)];
  }
  return null;
}

function link(address, label) {
  const url = URL.canParse(address) ? new URL(address) : null;
  if (!url || !["http:", "https:"].includes(url.protocol)) return document.createTextNode(label);
  const anchor = node("a", [label]);
  anchor.href = url.href;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer nofollow";
  return anchor;
}

function node(name, children = []) {
  const element = document.createElement(name);
  element.append(...children);
  return element;
}
