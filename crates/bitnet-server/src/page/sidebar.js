// The list of conversations.

import { element } from './render.js';
import { exported } from './conversation.js';
import { question } from './options.js';
import { settings } from './store.js';

const $ = id => document.getElementById(id);
const narrow = matchMedia('(max-width: 48rem)');

export class Sidebar {
  // { id, title, updated } of each conversation.
  #known = new Map();
  #current = null;
  // What the list shows.
  #shown = '';

  /**
   * `store` keeps the conversations. `get` returns a conversation by its id, as it is now. `change`
   * applies a function to one and keeps it; `removed` is called after some are deleted.
   */
  constructor(store, { get, change, removed }) {
    Object.assign(this, { store, get, change, removed });
    $('show-side').onclick = () => this.#show(true);
    $('hide-side').onclick = () => this.#show(false);
    $('shade').onclick = () => this.#show(false);
    $('export-all').onclick = async () => save('conversations', (await store.all()).map(exported));
    $('delete-all').onclick = () => this.#deleteAll();
    $('list').onclick = event => {
      if (narrow.matches && event.target.closest('a')) this.#show(false);
    };
    narrow.onchange = () => this.#show(this.#isWanted(), false);
    this.#show(this.#isWanted(), false);
  }

  async load() {
    for (const conversation of await this.store.all()) this.#note(conversation);
    this.#draw();
  }

  /** Shows a conversation in the list as it is now; null is a deleted one. */
  update(id, conversation) {
    if (conversation) this.#note(conversation);
    else this.#known.delete(id);
    this.#draw();
  }

  /** Marks the conversation that is shown. */
  select(id) {
    this.#current = id;
    this.#draw();
  }

  /** Hides the list if it lies above the messages. Returns whether it did. */
  hide() {
    const isOpen = narrow.matches && !document.body.classList.contains('no-side');
    if (isOpen) this.#show(false);
    return isOpen;
  }

  #note({ id, title, updated }) {
    this.#known.set(id, { id, title, updated });
  }

  #isWanted() {
    return !narrow.matches && settings.read('side') !== 'hidden';
  }

  #show(isShown, isChosen = true) {
    document.body.classList.toggle('no-side', !isShown);
    $('show-side').setAttribute('aria-expanded', isShown);
    // On a phone the list lies above the messages, which wait.
    $('page').inert = isShown && narrow.matches;
    if (!isChosen) return;
    if (!narrow.matches) settings.write('side', isShown ? '' : 'hidden');
    (isShown ? $('hide-side') : $('show-side')).focus();
  }

  #draw() {
    const newestFirst = [...this.#known.values()].sort((a, b) => b.updated - a.updated);
    const shown = JSON.stringify([this.#current, newestFirst.map(({ id, title }) => [id, title])]);
    // An answer under way is kept each second; the list stays as it is under the reader's pointer.
    if (shown === this.#shown) return;
    this.#shown = shown;
    const focused = document.activeElement?.closest('#list a, #list button');
    const [words, address] = [focused?.textContent, focused?.closest('li').querySelector('a').hash];
    $('list').replaceChildren(...newestFirst.map(known => this.#item(known)));
    $('side-end').hidden = newestFirst.length === 0;
    const link = address && $('list').querySelector(`a[href="${address}"]`);
    const buttons = [...(link?.closest('li').querySelectorAll('button') ?? [])];
    (buttons.find(button => button.textContent === words) ?? link)?.focus();
  }

  #item({ id, title }) {
    const isCurrent = id === this.#current;
    const link = element(
      'a',
      { href: `#${id}`, 'aria-current': isCurrent ? 'page' : null, dir: 'auto' },
      title,
    );
    const item = element('li', {}, link);
    if (isCurrent) item.append(this.#deeds(id, title));
    return item;
  }

  #deeds(id, title) {
    const deed = (name, act) => {
      const button = element(
        'button',
        { type: 'button', class: 'quiet', 'aria-label': `${name}: ${title}` },
        name,
      );
      button.onclick = act;
      return button;
    };
    return element(
      'div',
      { class: 'deeds' },
      deed('Rename', () => this.#rename(id, title)),
      deed('Export', async () => save(title, exported(await this.get(id)))),
      deed('Delete', () => this.#delete(id, title)),
    );
  }

  async #rename(id, title) {
    const given = await question({ title: 'Rename the conversation', yes: 'Rename', given: title });
    if (given)
      await this.change(id, conversation =>
        Object.assign(conversation, { title: given, isNamed: true }),
      );
  }

  async #delete(id, title) {
    const text = 'All its messages are lost.';
    if ((await question({ title: `Delete “${title}”?`, text, yes: 'Delete' })) === null) return;
    await this.#remove([id]);
  }

  async #deleteAll() {
    const count = this.#known.size;
    const title = count === 1 ? 'Delete the conversation?' : `Delete all ${count} conversations?`;
    if ((await question({ title, text: 'All messages are lost.', yes: 'Delete' })) === null) return;
    await this.#remove([...this.#known.keys()]);
  }

  async #remove(ids) {
    this.removed(ids);
    for (const id of ids) {
      await this.store.remove(id);
      this.#known.delete(id);
    }
    this.#draw();
  }
}

/** Gives the reader a JSON file. */
function save(title, value) {
  const name =
    title
      .replace(/[^\p{L}\p{N}]+/gu, '-')
      .replace(/^-|-$/g, '')
      .slice(0, 60) || 'conversation';
  const link = element('a', { download: `${name}.json` });
  link.href = URL.createObjectURL(
    new Blob([JSON.stringify(value, null, 2)], { type: 'application/json' }),
  );
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
