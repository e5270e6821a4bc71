// One message in the page.

import { MarkdownView, codeBlock, element } from './render.js';

const END = { length: 'cut off at the maximum of tokens', stopped: 'stopped' };

/** A message's element, which `draw` brings up to date. */
export class MessageView {
  #text;
  #foot = element('div', { class: 'foot' });
  #note = element('span', { class: 'note' });

  /** `act` is called with the name of what the reader wants, the message, and the button. */
  constructor(message, act) {
    this.message = message;
    this.act = act;
    this.article = element('article', { class: message.role, 'aria-label': label(message) });
    if (message.role === 'assistant') this.#makeAnswer();
    else this.#makeText();
    this.#foot.append(this.#note);
    this.article.append(this.#foot);
  }

  #makeText() {
    const { role, name, content } = this.message;
    if (role === 'tool')
      this.article.append(element('div', { class: 'name' }, `Result of ${name}`));
    this.#text = element('div', { class: 'text', dir: 'auto' }, content);
    this.article.append(this.#text);
  }

  #makeAnswer() {
    this.thought = element(
      'details',
      { class: 'thought', hidden: true },
      element('summary'),
      element('div', { dir: 'auto' }, ''),
    );
    this.#text = element('div', { class: 'answer' });
    this.markdown = new MarkdownView(this.#text);
    this.calls = element('div');
    this.problem = element('div', { class: 'problem', hidden: true });
    this.article.append(this.thought, this.#text, this.calls, this.problem);
  }

  /** The text as it is shown. */
  get text() {
    return this.#text.innerText;
  }

  /** Shows the message as it is now; `versions` are its versions. */
  draw(versions, isLast) {
    const { message } = this;
    if (message.role === 'assistant') {
      this.#drawThought();
      this.markdown.update(message.content);
      this.#drawCalls();
      this.problem.textContent = message.problem ?? '';
      this.problem.hidden = !message.problem;
      this.#note.textContent = note(message);
      this.article.setAttribute('aria-busy', message.end === null);
      this.#text.classList.toggle(
        'wait',
        message.end === null && !message.content && !message.reasoning,
      );
      this.article.toggleAttribute('data-done', message.end !== null);
    }
    // Buttons stay the same while an answer is written.
    const state = `${message.end} ${versions.length} ${isLast}`;
    if (state !== this.state) this.#drawFoot(versions, isLast);
    this.state = state;
  }

  #drawThought() {
    const { reasoning, content, calls, end, speed } = this.message;
    this.thought.hidden = !reasoning;
    if (!reasoning) return;
    const [summary, body] = this.thought.children;
    const isThinking = end === null && !content && calls.length === 0;
    const tokens = speed?.reasoningTokens;
    const words = isThinking ? 'Thinking…' : tokens ? `Thought, ${tokens} tokens` : 'Thought';
    if (summary.textContent !== words) summary.textContent = words;
    const text = body.firstChild;
    if (reasoning.startsWith(text.data)) text.appendData(reasoning.slice(text.data.length));
    else text.data = reasoning;
  }

  #drawCalls() {
    const { calls, end } = this.message;
    for (const [index, call] of calls.entries()) {
      if (index === this.calls.children.length) this.calls.append(callView(call.name));
      const code = this.calls.children[index].querySelector('code');
      const text = end === null ? call.arguments : readable(call.arguments);
      if (code.textContent !== text) code.textContent = text;
    }
  }

  #drawFoot(versions, isLast) {
    const { message } = this;
    this.#foot.replaceChildren(this.#note);
    if (message.end === null) return;
    if (versions.length > 1) this.#foot.append(this.#versionButtons(versions));
    if (message.content) this.#offer('copy', 'Copy');
    if (message.role === 'user') this.#offer('edit', 'Edit');
    if (message.role === 'assistant')
      this.#offer('again', message.problem ? 'Try again' : 'Regenerate', isLast);
  }

  #offer(name, words, isShown = true) {
    const button = element(
      'button',
      { type: 'button', class: `quiet ${name}`, hidden: !isShown },
      words,
    );
    button.onclick = () => this.act(name, this.message, button);
    this.#foot.append(button);
  }

  #versionButtons(versions) {
    const place = versions.indexOf(this.message);
    const button = (words, sign, version) => {
      const made = element(
        'button',
        { type: 'button', class: 'quiet', 'aria-label': words, disabled: !version },
        sign,
      );
      made.onclick = () => this.act('choose', version, made);
      return made;
    };
    return element(
      'div',
      { class: 'versions', role: 'group', 'aria-label': 'Versions of this message' },
      button('Earlier version', '‹', versions[place - 1]),
      `${place + 1} of ${versions.length}`,
      button('Later version', '›', versions[place + 1]),
    );
  }

  /** Lets the reader change the text of the message. `done` gets the new text, or null. */
  edit(done) {
    const box = element('textarea', { 'aria-label': 'Edit the message' });
    const save = element('button', { type: 'button', class: 'main' }, 'Send');
    const cancel = element('button', { type: 'button', class: 'plain' }, 'Cancel');
    const editor = element(
      'div',
      { class: 'editor' },
      box,
      element('div', { class: 'row' }, cancel, save),
    );
    const close = text => {
      editor.replaceWith(this.#text);
      this.#foot.hidden = false;
      this.article.classList.remove('editing');
      this.#foot.querySelector('.edit')?.focus();
      done(text);
    };
    box.value = this.message.content;
    save.onclick = () => close(box.value.trim() || null);
    cancel.onclick = () => close(null);
    box.onkeydown = event => {
      if (event.key === 'Escape') cancel.click();
      else if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) save.click();
      else return;
      event.preventDefault();
      event.stopPropagation();
    };
    this.article.classList.add('editing');
    this.#foot.hidden = true;
    this.#text.replaceWith(editor);
    box.style.height = `${box.scrollHeight + 2}px`;
    box.focus();
  }
}

function label({ role, name, model }) {
  if (role === 'tool') return `Result of ${name}`;
  return role === 'user' ? 'Your message' : model ? `Answer of ${model}` : 'Answer';
}

function callView(name) {
  const heading = element('p', {}, 'Calls the tool ', element('strong', {}, name));
  return element(
    'div',
    { class: 'call', role: 'group', 'aria-label': `Call of ${name}` },
    heading,
    codeBlock('json'),
  );
}

/** JSON with one value a line; the text itself if it is not JSON. */
function readable(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** How long an answer is, how fast it came, and why it ended. */
function note({ speed, end, showsModel, model }) {
  if (!speed) return END[end] ?? '';
  const { tokens, perSecond, firstAfter } = speed;
  return [
    `${tokens} ${tokens === 1 ? 'token' : 'tokens'}`,
    perSecond && `${perSecond.toFixed(1)} tokens/s`,
    `first after ${firstAfter.toFixed(2)} s`,
    showsModel && model,
    END[end],
  ]
    .filter(Boolean)
    .join(' · ');
}
