// Markdown, read into a tree of nodes. Pure functions of a text: no DOM and no HTML.
//
// A node is a string, or { tag, children } with the attributes of its tag: `href` and `title` of a
// link, `start` of an ordered list, `isDone` of a task, `language` of a code block, `align` of a
// cell. HTML in the text stays text.
//
// The rules are CommonMark's with tables, tasks, strikethrough and bare links, except where answers
// of models read better:
// - a line end is a line break, as in comments on GitHub;
// - a line of dashes below a paragraph is a rule: there are no underlined headings;
// - a nested list may be indented by two spaces below any item;
// - images become links, because the page loads nothing from other hosts;
// - there are no link definitions (`[a]: b`).

// Containers may nest this deep; deeper markers are text. This bounds the recursion here and in the
// page.
const DEPTH_MAX = 16;
// Runs of emphasis that wait for their end, and the length of a run; further or longer ones are
// text.
const OPEN_RUNS_MAX = 30;
const RUN_MAX = 6;
// Longest destination of a link, and the depth of the parentheses in it. The search for its end
// stops there, so that the time to read a text stays linear.
const DESTINATION_MAX = 2000;
const PARENTHESES_MAX = 32;

const FENCE = /^( {0,3})(`{3,}(?=[^`]*$)|~{3,})(.*)$/s;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*)|[ \t]*)$/s;
const TASK = /^\[([ xX])\][ \t]+/;
const DASHES = /^[ \t]*:?-+:?[ \t]*$/;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const ENTITIES = {
  amp: '&',
  lt: '<',
  gt: '>',
  quot: '"',
  apos: "'",
  nbsp: '\u00a0',
  hellip: '…',
  mdash: '—',
  ndash: '–',
  times: '×',
  deg: '°',
  middot: '·',
  bull: '•',
  larr: '←',
  rarr: '→',
  le: '≤',
  ge: '≥',
  ne: '≠',
  euro: '€',
  copy: '©',
};

/** Reads a whole text. Returns its blocks. */
export function parse(text) {
  return blocks(lines(text), 0).map(block => block.node);
}

/**
 * Reads a text that grows at its end. Blocks before the last one never change, so that each update
 * reads only the last block and the new text.
 */
export class GrowingText {
  /** Number of blocks that are final. */
  numFinal = 0;
  #start = 0;

  /**
   * Returns the blocks from number `numFinal` (as it was before) on, and counts the ones that are
   * now final.
   */
  update(text) {
    const rest = text.slice(this.#start);
    const all = lines(rest);
    const found = blocks(all, 0);
    // An unfinished line may still change its kind (`1.` begins an item, `1.5` does not), and with
    // it where a block ends.
    let last = found.length - 1;
    if (last > 0 && found[last].line === all.length - 1) last -= 1;
    if (last > 0) {
      this.numFinal += last;
      this.#start += offset(rest, found[last].line);
    }
    return found.map(block => block.node);
  }
}

/** The offset of a line in a text. */
function offset(text, line) {
  let at = 0;
  for (let count = 0; count < line; count += 1) at = text.indexOf('\n', at) + 1;
  return at;
}

const lines = text => text.split('\n').map(line => line.replace(/\r$/, ''));
const isBlank = line => /^\s*$/.test(line);

/** The first column of a line with text. A tab ends at the next multiple of four. */
function indentOf(line) {
  let column = 0;
  for (let at = 0; line[at] === ' ' || line[at] === '\t'; at += 1)
    column += line[at] === '\t' ? 4 - (column % 4) : 1;
  return column;
}

/** A line without its first `columns` columns, as far as they are empty. */
function dedent(line, columns) {
  let at = 0,
    column = 0;
  for (; column < columns && (line[at] === ' ' || line[at] === '\t'); at += 1)
    column += line[at] === '\t' ? 4 - (column % 4) : 1;
  return ' '.repeat(Math.max(column - columns, 0)) + line.slice(at);
}

/** The blocks of lines, each with the number of its first line. */
function blocks(all, depth) {
  const found = [];
  let at = 0;
  while (at < all.length) {
    if (isBlank(all[at])) {
      at += 1;
      continue;
    }
    const { node, end } = block(all, at, depth);
    found.push({ node, line: at });
    at = end;
  }
  return found;
}

/** The block that begins at a line, and the line behind it. */
function block(all, at, depth) {
  const containers = depth < DEPTH_MAX ? (quote(all, at, depth) ?? list(all, at, depth)) : null;
  return (
    indentedCode(all, at) ??
    fencedCode(all, at) ??
    heading(all, at) ??
    rule(all, at) ??
    containers ??
    table(all, at) ??
    paragraph(all, at)
  );
}

function indentedCode(all, at) {
  if (indentOf(all[at]) < 4) return null;
  let end = at,
    filled = at;
  for (; end < all.length && (isBlank(all[end]) || indentOf(all[end]) >= 4); end += 1) {
    if (!isBlank(all[end])) filled = end + 1;
  }
  const text = all
    .slice(at, filled)
    .map(line => dedent(line, 4))
    .join('\n');
  return { node: { tag: 'pre', language: '', children: [text] }, end: filled };
}

function fencedCode(all, at) {
  const match = FENCE.exec(all[at]);
  if (!match) return null;
  const [, indent, marks, info] = match;
  const isEnd = line => /^ {0,3}(`+|~+)[ \t]*$/.exec(line)?.[1].startsWith(marks) ?? false;
  let end = at + 1;
  while (end < all.length && !isEnd(all[end])) end += 1;
  const text = all
    .slice(at + 1, end)
    .map(line => dedent(line, indent.length))
    .join('\n');
  return {
    node: { tag: 'pre', language: info.trim().split(/\s/)[0], children: [text] },
    end: end + 1,
  };
}

function heading(all, at) {
  const match = HEADING.exec(all[at]);
  if (!match) return null;
  let text = all[at].slice(match[0].length).trim();
  let last = text.length;
  while (text[last - 1] === '#') last -= 1;
  if (last < text.length && (last === 0 || /[ \t]/.test(text[last - 1])))
    text = text.slice(0, last).trimEnd();
  return { node: { tag: `h${match[1].length}`, children: inline(text) }, end: at + 1 };
}

function rule(all, at) {
  return RULE.test(all[at]) ? { node: { tag: 'hr', children: [] }, end: at + 1 } : null;
}

function quote(all, at, depth) {
  if (!QUOTE.test(all[at])) return null;
  const inner = new Container();
  let end = at;
  for (; end < all.length; end += 1) {
    if (QUOTE.test(all[end])) inner.push(all[end].replace(QUOTE, ''));
    else if (inner.isContinuedBy(all[end])) inner.push(all[end]);
    else break;
  }
  return {
    node: { tag: 'blockquote', children: blocks(inner.lines, depth + 1).map(block => block.node) },
    end,
  };
}

/** The lines of a quote or an item, while they are collected. */
class Container {
  lines = [];
  #fence = null;
  #isParagraph = false;

  push(line) {
    this.lines.push(line);
    let text = line;
    while (QUOTE.test(text)) text = text.replace(QUOTE, '');
    text = itemAt(text)?.text ?? text;
    const marks = FENCE.exec(text)?.[2];
    if (this.#fence) {
      if (marks?.startsWith(this.#fence)) this.#fence = null;
      this.#isParagraph = false;
    } else {
      this.#fence = marks ?? null;
      const isCode = indentOf(text) >= 4 && !this.#isParagraph;
      this.#isParagraph = !(
        marks ||
        isBlank(text) ||
        isCode ||
        HEADING.test(text) ||
        RULE.test(text)
      );
    }
  }

  /** Whether a line without the container's marker continues the paragraph at its end. */
  isContinuedBy(line) {
    return this.#isParagraph && !isBlank(line) && itemAt(line) === null && !interrupts(line);
  }
}

/**
 * The marker of a list's item at the beginning of a line: its column, kind and number, and where
 * its text begins.
 */
function itemAt(line) {
  const match = ITEM.exec(line);
  if (!match || match[1].length > 3 || RULE.test(line)) return null;
  const [, indent, marker, gap = ' ', text = ''] = match;
  const width = text === '' || gap.length > 4 ? 1 : gap.length;
  const number = marker.length > 1 ? Number(marker.slice(0, -1)) : null;
  return {
    indent: indent.length,
    kind: marker.at(-1),
    number,
    content: indent.length + marker.length + width,
    text: gap.length > 4 && text !== '' ? gap.slice(1) + text : text,
  };
}

function list(all, at, depth) {
  const first = itemAt(all[at]);
  if (!first) return null;
  const items = [];
  let end = at,
    isLoose = false;
  for (;;) {
    const { inner, next } = itemLines(all, end);
    const children = blocks(inner, depth + 1);
    isLoose ||= children.some(({ line }, index) => index > 0 && isBlank(inner[line - 1]));
    items.push(children.map(block => block.node));
    end = next;
    let after = next;
    while (after < all.length && isBlank(all[after])) after += 1;
    if (after === all.length || itemAt(all[after])?.kind !== first.kind) break;
    isLoose ||= after > next;
    end = after;
  }
  const children = items.map(blocks => listItem(blocks, isLoose));
  const node =
    first.number === null ? { tag: 'ul', children } : { tag: 'ol', start: first.number, children };
  return { node, end };
}

/** The lines of one item without its indent, and the line behind the last of them. */
function itemLines(all, at) {
  const { indent, content, text } = itemAt(all[at]);
  const inner = new Container();
  inner.push(text);
  let next = at + 1,
    blanks = 0;
  for (let line = at + 1; line < all.length; line += 1) {
    if (isBlank(all[line])) {
      blanks += 1;
      // An item that begins with an empty line has no more of them.
      if (text === '' && line === at + 1) break;
      continue;
    }
    const column = indentOf(all[line]);
    const isNested = column >= indent + 2 && itemAt(dedent(all[line], indent + 2)) !== null;
    const isInside = column >= content || isNested;
    if (!isInside && (blanks > 0 || !inner.isContinuedBy(all[line]))) break;
    for (; blanks > 0; blanks -= 1) inner.push('');
    inner.push(dedent(all[line], content));
    next = line + 1;
  }
  return { inner: inner.lines, next };
}

/** An item; in a tight list its paragraphs are plain text. */
function listItem(blocks, isLoose) {
  const node = { tag: 'li', children: [] };
  const [first] = blocks;
  const task =
    first?.tag === 'p' && typeof first.children[0] === 'string'
      ? TASK.exec(first.children[0])
      : null;
  if (task) {
    node.isDone = task[1] !== ' ';
    first.children[0] = first.children[0].slice(task[0].length);
  }
  node.children = isLoose
    ? blocks
    : blocks.flatMap(block => (block.tag === 'p' ? block.children : [block]));
  return node;
}

function table(all, at) {
  if (!isTable(all, at)) return null;
  const heads = cells(all[at]);
  const aligns = cells(all[at + 1]).map(dashes => {
    const [left, right] = [dashes.startsWith(':'), dashes.endsWith(':')];
    return left && right ? 'center' : right ? 'right' : left ? 'left' : '';
  });
  // Rows keep their own number of cells: filled up, a short text could make a huge table.
  const row = (tag, texts) => ({
    tag: 'tr',
    children: texts
      .slice(0, aligns.length)
      .map((text, i) => ({ tag, align: aligns[i], children: inline(text) })),
  });
  const rows = [];
  let end = at + 2;
  for (; end < all.length && !isBlank(all[end]) && !interrupts(all[end]); end += 1)
    rows.push(row('td', cells(all[end])));
  const children = [{ tag: 'thead', children: [row('th', heads)] }];
  if (rows.length > 0) children.push({ tag: 'tbody', children: rows });
  return { node: { tag: 'table', children }, end };
}

function isTable(all, at) {
  const dashes = all[at + 1];
  if (
    dashes === undefined ||
    !all[at].includes('|') ||
    !/^[ \t]*[|:-]/.test(dashes) ||
    indentOf(dashes) >= 4
  )
    return false;
  const columns = cells(dashes);
  return columns.every(cell => DASHES.test(cell)) && columns.length === cells(all[at]).length;
}

/** The cells of a table's row. `\|` is a bar within a cell. */
function cells(line) {
  const found = [''];
  for (const part of line.trim().match(/\\\||\||[^\\|]+|\\/g) ?? []) {
    if (part === '|') found.push('');
    else found[found.length - 1] += part === '\\|' ? '|' : part;
  }
  if (found.length > 1 && found[0] === '') found.shift();
  if (found.length > 1 && found.at(-1) === '') found.pop();
  return found.map(cell => cell.trim());
}

function paragraph(all, at) {
  let end = at + 1;
  while (end < all.length && !isBlank(all[end]) && !interrupts(all[end]) && !isTable(all, end))
    end += 1;
  const text = all
    .slice(at, end)
    .map(line => line.trim())
    .join('\n');
  return { node: { tag: 'p', children: inline(text) }, end };
}

/** Whether a line begins a block that may follow a paragraph without an empty line. */
function interrupts(line) {
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  const item = itemAt(line);
  return item !== null && item.text !== '' && (item.number === null || item.number === 1);
}

/** Reads the text of a block. */
export function inline(text) {
  return new Inline(text).read();
}

class Inline {
  // Nodes, and runs of emphasis ({ run, … }) that are not yet resolved.
  #items = [];
  // Where in #items a link may begin.
  #brackets = [];
  #at = 0;
  #ticks = null;

  constructor(text) {
    this.text = text;
  }

  read() {
    while (this.#at < this.text.length) {
      const read = Inline.#READERS[this.text[this.#at]] ?? 'plain';
      if (!this[read]()) this.#add(this.text[this.#at++]);
    }
    return emphasize(this.#items);
  }

  static #READERS = {
    '\\': 'escape',
    '`': 'code',
    '*': 'run',
    _: 'run',
    '~': 'run',
    '[': 'open',
    '!': 'open',
    ']': 'close',
    '<': 'autolink',
    '&': 'entity',
    '\n': 'lineBreak',
    h: 'bareLink',
  };

  #add(text) {
    const last = this.#items.length - 1;
    // A bracket points behind its text, so that no later text joins it.
    const isBracket = this.#brackets.at(-1)?.index === last + 1;
    if (typeof this.#items[last] === 'string' && !isBracket) this.#items[last] += text;
    else this.#items.push(text);
  }

  #match(pattern) {
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.text);
    if (match) this.#at += match[0].length;
    return match;
  }

  plain() {
    this.#add(this.#match(/[^\\`*_~[!\]<&\nh]+/y)[0]);
    return true;
  }

  escape() {
    const next = this.text[this.#at + 1];
    if (next === '\n') {
      // A marked line break; all line ends are breaks.
      this.#at += 1;
      return true;
    }
    if (next === undefined || !ESCAPABLE.test(next)) return false;
    this.#add(next);
    this.#at += 2;
    return true;
  }

  lineBreak() {
    this.#items.push({ tag: 'br', children: [] });
    this.#at += 1;
    return true;
  }

  code() {
    const marks = this.#match(/`+/y)[0];
    const end = this.#ticksAfter(marks.length, this.#at);
    if (end === undefined) {
      this.#add(marks);
      return true;
    }
    let text = this.text.slice(this.#at, end).replaceAll('\n', ' ');
    if (/^ .* $/s.test(text) && !isBlank(text)) text = text.slice(1, -1);
    this.#items.push({ tag: 'code', children: [text] });
    this.#at = end + marks.length;
    return true;
  }

  /** Where the next run of exactly `length` backticks begins. */
  #ticksAfter(length, at) {
    if (!this.#ticks) {
      this.#ticks = new Map();
      for (const { 0: marks, index } of this.text.matchAll(/`+/g)) {
        if (!this.#ticks.has(marks.length)) this.#ticks.set(marks.length, []);
        this.#ticks.get(marks.length).push(index);
      }
    }
    const places = this.#ticks.get(length) ?? [];
    while (places.length > 0 && places[0] < at) places.shift();
    return places[0];
  }

  run() {
    const before = this.text[this.#at - 1] ?? '\n';
    const marks = this.#match(/\*+|_+|~+/y)[0];
    const after = this.text[this.#at] ?? '\n';
    const [spaceBefore, spaceAfter] = [/\s/.test(before), /\s/.test(after)];
    const [signBefore, signAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
    const opens = !spaceAfter && (!signAfter || spaceBefore || signBefore);
    const closes = !spaceBefore && (!signBefore || spaceAfter || signAfter);
    const isWord = marks[0] === '_';
    const run = {
      run: marks[0],
      length: marks.length,
      count: marks.length,
      canOpen: opens && (!isWord || !closes || signBefore),
      canClose: closes && (!isWord || !opens || signAfter),
    };
    if (marks.length > RUN_MAX || (marks[0] === '~' && marks.length !== 2)) this.#add(marks);
    else this.#items.push(run);
    return true;
  }

  open() {
    const mark = this.#match(/!?\[/y)?.[0];
    if (!mark) return false;
    this.#items.push(mark);
    this.#brackets.push({ index: this.#items.length, isImage: mark === '![' });
    return true;
  }

  close() {
    const bracket = this.#brackets.pop();
    if (!bracket) return false;
    const begin = this.#at;
    this.#at += 1;
    const link = this.#destination();
    if (!link) {
      this.#at = begin;
      return false;
    }
    const children = emphasize(this.#items.splice(bracket.index));
    this.#items.pop();
    this.#items.push(
      anchor(
        link.href,
        children.length > 0 ? children : [bracket.isImage ? 'image' : link.href],
        link.title,
      ),
    );
    // No link lies within another.
    this.#brackets = [];
    return true;
  }

  /** `(destination "title")`, if it is a link that may be shown. */
  #destination() {
    if (!this.#match(/\(\s*/y)) return null;
    const target = this.#match(/<([^<>\n]{0,2000})>/y)?.[1] ?? this.#bareDestination();
    const title = this.#match(/\s+(?:"((?:[^"\\]|\\.){0,500})"|'((?:[^'\\]|\\.){0,500})')/sy);
    if (!this.#match(/\s*\)/y)) return null;
    const href = safeAddress(plainText(target));
    return href && { href, title: plainText(title?.[1] ?? title?.[2] ?? '') };
  }

  #bareDestination() {
    const begin = this.#at;
    let open = 0;
    while (this.#at < this.text.length && this.#at - begin < DESTINATION_MAX) {
      const character = this.text[this.#at];
      if (/\s/.test(character) || (character === ')' && open === 0) || open > PARENTHESES_MAX)
        break;
      if (character === '\\') this.#at += 1;
      else if (character === '(') open += 1;
      else if (character === ')') open -= 1;
      this.#at += 1;
    }
    return this.text.slice(begin, this.#at);
  }

  autolink() {
    const begin = this.#at;
    const text = this.#match(
      /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000}|[\w.+-]{1,64}@[\w.-]{1,255})>/iy,
    )?.[1];
    const href = text && safeAddress(text.includes(':') ? text : `mailto:${text}`);
    if (href) this.#items.push(anchor(href, [text]));
    else this.#at = begin;
    return Boolean(href);
  }

  bareLink() {
    const begin = this.#at;
    if (/\w/.test(this.text[begin - 1] ?? '') || this.#brackets.length > 0) return false;
    let text = this.#match(/https?:\/\/[^\s<>`*]{1,2000}/y)?.[0];
    if (!text) return false;
    text = withoutEnd(text);
    const href = safeAddress(text);
    this.#at = href ? begin + text.length : begin;
    if (href) this.#items.push(anchor(href, [text]));
    return Boolean(href);
  }

  entity() {
    const match = this.#match(/&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|([a-z]{2,6}));/y);
    if (!match) return false;
    this.#add(entity(match));
    return true;
  }
}

function entity([whole, decimal, hexadecimal, name]) {
  if (name) return ENTITIES[name] ?? whole;
  const code = decimal ? parseInt(decimal, 10) : parseInt(hexadecimal, 16);
  return code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000)
    ? String.fromCodePoint(code)
    : '\ufffd';
}

/** A text without its escapes and entities. */
function plainText(text) {
  return text.replace(
    /\\([!-/:-@[-`{-~])|&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|([a-z]{2,6}));/g,
    (whole, sign, ...more) => sign ?? entity([whole, ...more]),
  );
}

/** A link's text without the signs behind it that belong to the sentence. */
function withoutEnd(text) {
  for (;;) {
    const shorter = text.replace(/[.,:;!?'"_~\]]$/, '');
    const isOpen = text.endsWith(')') && text.split(')').length > text.split('(').length;
    if (!isOpen && shorter === text) return text;
    text = isOpen ? text.slice(0, -1) : shorter;
  }
}

/**
 * An address that a link may lead to; null for others, such as `javascript:` and addresses without
 * a host.
 */
export function safeAddress(text) {
  const isAllowed = /^(?:https?:\/\/|mailto:)/i.test(text) && URL.canParse(text);
  return isAllowed ? new URL(text).href : null;
}

function anchor(href, children, title = '') {
  return { tag: 'a', href, title, children };
}

/** Resolves the runs of emphasis among the items, as CommonMark's appendix says. */
function emphasize(items) {
  const result = [],
    openers = [];
  // For each kind of closer, the number of openers that are known not to fit.
  const floors = new Map();
  for (const item of items) {
    if (!item.run) {
      result.push(item);
      continue;
    }
    if (item.canClose) closeRun(item, result, openers, floors);
    if (item.count > 0) {
      if (item.canOpen && openers.length < OPEN_RUNS_MAX) openers.push(result.length);
      result.push(item);
    }
  }
  return joined(result);
}

function closeRun(closer, result, openers, floors) {
  const kind = `${closer.run}${closer.canOpen}${closer.length % 3}`;
  while (closer.count > 0) {
    let place = openers.length - 1;
    while (place >= (floors.get(kind) ?? 0) && !fits(result[openers[place]], closer)) place -= 1;
    if (place < (floors.get(kind) ?? 0)) {
      floors.set(kind, openers.length);
      return;
    }
    const index = openers[place],
      opener = result[index];
    const count = opener.count >= 2 && closer.count >= 2 ? 2 : 1;
    const tag = closer.run === '~' ? 'del' : count === 2 ? 'strong' : 'em';
    const node = { tag, children: joined(result.splice(index + 1)) };
    opener.count -= count;
    closer.count -= count;
    if (opener.count === 0) result.pop();
    result.push(node);
    openers.length = opener.count === 0 ? place : place + 1;
    for (const [kind, floor] of floors) floors.set(kind, Math.min(floor, openers.length));
  }
}

function fits(opener, closer) {
  if (opener.run !== closer.run) return false;
  const isBoth = opener.canClose || closer.canOpen;
  return (
    !isBoth ||
    (opener.length + closer.length) % 3 !== 0 ||
    (opener.length % 3 === 0 && closer.length % 3 === 0)
  );
}

/** Items as nodes: runs that are left become text, and texts side by side become one. */
function joined(items) {
  const nodes = [];
  for (const item of items) {
    const node = item.run ? item.run.repeat(item.count) : item;
    if (node === '') continue;
    if (typeof node === 'string' && typeof nodes.at(-1) === 'string')
      nodes[nodes.length - 1] += node;
    else nodes.push(node);
  }
  return nodes;
}
