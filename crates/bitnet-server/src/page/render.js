// Shows the tree of `markdown.js` in the page. It makes elements and texts one by one, with the
// tags and attributes listed here: no text of a model is ever read as HTML.

import { GrowingText } from './markdown.js';

const PLAIN = new Set([
  'p',
  'h1',
  'h2',
  'h3',
  'h4',
  'h5',
  'h6',
  'blockquote',
  'ul',
  'ol',
  'li',
  'hr',
  'br',
  'em',
  'strong',
  'del',
  'code',
  'thead',
  'tbody',
  'tr',
  'th',
  'td',
]);
// Text in these may run from right to left.
const BLOCKS = new Set(['p', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'li', 'th', 'td']);

/** An element with attributes and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false)
      made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children);
  return made;
}

/** Markdown that grows at its end, shown in an element. */
export class MarkdownView {
  #text = '';
  #growing = new GrowingText();
  #nodes = [];

  constructor(parent) {
    this.parent = parent;
  }

  /**
   * Shows a text. If it continues the text before, only its last block and what follows change in
   * the page.
   */
  update(text) {
    if (text === this.#text) return;
    if (!text.startsWith(this.#text)) {
      this.#growing = new GrowingText();
      this.#nodes = [];
      this.parent.replaceChildren();
    }
    this.#text = text;
    const first = this.#growing.numFinal;
    const blocks = this.#growing.update(text);
    patch(this.parent, this.#nodes.slice(first), blocks, first);
    this.#nodes.splice(first, Infinity, ...blocks);
  }
}

/** Makes the children of `parent` from number `first` on, which show `before`, show `after`. */
function patch(parent, before, after, first = 0) {
  for (const [index, node] of after.entries()) {
    const shown = parent.childNodes[first + index];
    const old = before[index];
    if (old === undefined || shown === undefined) parent.append(create(node));
    else if (!isSameKind(old, node)) shown.replaceWith(create(node));
    else if (typeof node === 'string') extend(shown, old, node);
    else patch(inner(shown, node.tag), old.children, node.children);
  }
  while (parent.childNodes.length > first + after.length) parent.lastChild.remove();
}

function isSameKind(old, node) {
  if (typeof old === 'string' || typeof node === 'string') return typeof old === typeof node;
  return ['tag', 'href', 'title', 'start', 'isDone', 'language', 'align'].every(
    name => old[name] === node[name],
  );
}

/** Changes a text; what stays keeps its place, so that a selection of the reader stays, too. */
function extend(shown, old, text) {
  if (text === old) return;
  if (text.startsWith(old)) shown.appendData(text.slice(old.length));
  else shown.data = text;
}

function create(node) {
  if (typeof node === 'string') return document.createTextNode(node);
  const made = make(node);
  inner(made, node.tag).append(...node.children.map(create));
  return made;
}

/** The element that holds the children of a node. */
function inner(shown, tag) {
  if (tag === 'pre') return shown.querySelector('code');
  if (tag === 'table') return shown.firstChild;
  // A task begins with its box.
  return tag === 'li' && shown.classList.contains('task') ? shown.lastChild : shown;
}

function make(node) {
  switch (node.tag) {
    case 'pre':
      return codeBlock(node.language);
    case 'table':
      return element(
        'div',
        { class: 'table', tabindex: 0, role: 'region', 'aria-label': 'Table' },
        element('table'),
      );
    case 'a':
      return element('a', {
        href: node.href,
        title: node.title || null,
        rel: 'noopener noreferrer nofollow',
        target: '_blank',
      });
    case 'li':
      return node.isDone === undefined ? element('li', { dir: 'auto' }) : task(node.isDone);
    case 'ol':
      return element('ol', { start: node.start === 1 ? null : node.start });
    default: {
      if (!PLAIN.has(node.tag)) throw new Error(`no such node: ${node.tag}`);
      return element(node.tag, {
        dir: BLOCKS.has(node.tag) ? 'auto' : null,
        class: node.align ? `to-${node.align}` : null,
      });
    }
  }
}

function task(isDone) {
  const box = element('input', {
    type: 'checkbox',
    disabled: true,
    checked: isDone,
    'aria-label': isDone ? 'done' : 'to do',
  });
  return element('li', { class: 'task', dir: 'auto' }, box, element('span'));
}

/** A block of code with its language and a button that copies it. */
export function codeBlock(language) {
  const copy = element('button', { type: 'button', class: 'copy-code' }, 'Copy');
  copy.setAttribute('aria-label', language ? `Copy the ${language} code` : 'Copy the code');
  const label = language ? `Code in ${language}` : 'Code';
  const code = element(
    'pre',
    { tabindex: 0, role: 'region', 'aria-label': label },
    element('code'),
  );
  return element(
    'div',
    { class: 'code' },
    element('div', { class: 'code-head' }, element('span', {}, language), copy),
    code,
  );
}
