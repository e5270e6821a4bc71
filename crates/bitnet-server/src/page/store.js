// What the browser keeps: conversations in an IndexedDB database, settings in the local storage,
// the API key only until the tab is closed. Where the browser allows none of this, everything lasts
// until the page is closed.

const DATABASE = 'bitnet';
const TABLE = 'conversations';

/** Settings, as texts by name. */
export const settings = {
  read: name => attempt(() => localStorage.getItem(`bitnet.${name}`)) ?? '',
  write: (name, value) =>
    attempt(() =>
      value
        ? localStorage.setItem(`bitnet.${name}`, value)
        : localStorage.removeItem(`bitnet.${name}`),
    ),
};

let lastKey = '';
/** The API key. */
export const key = {
  read: () => attempt(() => sessionStorage.getItem('bitnet.key')) ?? lastKey,
  write(value) {
    lastKey = value;
    attempt(() =>
      value ? sessionStorage.setItem('bitnet.key', value) : sessionStorage.removeItem('bitnet.key'),
    );
  },
};

/** The result of an action; null if the browser forbids it. */
function attempt(action) {
  try {
    return action();
  } catch {
    return null;
  }
}

/** Opens the conversations of this browser. */
export async function openConversations() {
  try {
    return new Database(await open());
  } catch {
    return new Memory();
  }
}

function open() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: 'id' });
  return result(request);
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Conversations that outlast the page. */
class Database {
  isLasting = true;
  #database;
  // Tells the other tabs which conversation has changed.
  #channel = new BroadcastChannel('bitnet.conversations');

  constructor(database) {
    this.#database = database;
  }

  /** Calls `notify` with the id of each conversation that another tab changes. */
  watch(notify) {
    this.#channel.onmessage = event => notify(event.data);
  }

  #table(mode) {
    return this.#database.transaction(TABLE, mode).objectStore(TABLE);
  }

  all() {
    return result(this.#table('readonly').getAll());
  }

  get(id) {
    return result(this.#table('readonly').get(id));
  }

  /**
   * Keeps a conversation, and counts its `revision`. Returns false, and keeps nothing, if another
   * tab has changed or deleted it since it was read.
   */
  put(conversation) {
    const table = this.#table('readwrite');
    const { id, revision } = conversation;
    return new Promise((resolve, reject) => {
      const kept = table.get(id);
      kept.onsuccess = () => {
        if ((kept.result?.revision ?? 0) !== revision) return resolve(false);
        conversation.revision = revision + 1;
        const written = table.put(conversation);
        written.onerror = () => reject(written.error);
      };
      table.transaction.oncomplete = () => {
        this.#channel.postMessage(id);
        resolve(true);
      };
      table.transaction.onabort = () => reject(table.transaction.error);
    });
  }

  /**
   * Keeps a conversation while the page is closed, when there is no time to look at what is kept.
   */
  putAtOnce(conversation) {
    conversation.revision += 1;
    const table = this.#table('readwrite');
    table.put(conversation);
    // A page that is gone hears of no success, which would end the transaction.
    table.transaction.commit();
  }

  async remove(id) {
    await result(this.#table('readwrite').delete(id));
    this.#channel.postMessage(id);
  }
}

/** Conversations of a browser that keeps nothing. */
class Memory {
  isLasting = false;
  #kept = new Map();

  watch() {}

  async all() {
    return [...this.#kept.values()];
  }

  async get(id) {
    return this.#kept.get(id);
  }

  async put(conversation) {
    this.#kept.set(conversation.id, conversation);
    return true;
  }

  putAtOnce() {}

  async remove(id) {
    this.#kept.delete(id);
  }
}
