// The chat page: opens conversations, sends messages, and shows answers while they are written.

import * as api from './api.js';
import * as talk from './conversation.js';
import { MessageView } from './message.js';
import {
  askForKey,
  chosenModel,
  hasChoice,
  requestFields,
  setUpOptions,
  showModels,
  systemMessage,
} from './options.js';
import { element } from './render.js';
import { Sidebar } from './sidebar.js';
import { openConversations } from './store.js';

const $ = id => document.getElementById(id);
const scroller = $('scroll'),
  prompt = $('prompt');
// Milliseconds between two writes of an unfinished answer into the store.
const KEEP_PAUSE_MS = 1000;
// Milliseconds until a button that has copied a text offers it again.
const COPIED_MS = 2000;
// Characters of an answer that a screen reader is given at its end.
const READ_MAX = 2000;

const store = await openConversations();
// The shown conversation, and the views of its messages by their ids.
let current = talk.create();
let views = new Map();
// By the ids of their conversations: conversations with an answer that is being written, {
// conversation, message, abort }.
const running = new Map();
// Messages that have changed since the last frame.
const changed = new Set();
// Whether the end of the conversation stays in sight.
let follows = true;

const sidebar = new Sidebar(store, { get: find, change, removed });

// Keeping

/** A conversation as it is now. */
async function find(id) {
  if (id === current.id) return current;
  await writing;
  return running.get(id)?.conversation ?? (await store.get(id));
}

// Writes come one after the other, so that each has the revision of the one before.
let writing = Promise.resolve();

function keep(conversation) {
  writing = writing
    .then(() => write(conversation))
    .catch(error => say(`The browser could not keep the conversation: ${error.message}`));
  return writing;
}

async function write(conversation) {
  if (conversation.isRemoved) return;
  if (!(await store.put(conversation))) {
    // Another tab has changed it: both stay.
    const isShown = conversation === current;
    const answer = running.get(conversation.id);
    if (answer?.conversation === conversation) running.delete(conversation.id);
    Object.assign(conversation, {
      id: talk.create().id,
      revision: 0,
      title: `${conversation.title} (copy)`,
      isNamed: true,
    });
    if (answer?.conversation === conversation) running.set(conversation.id, answer);
    if (isShown) nameAddress();
    await store.put(conversation);
  }
  sidebar.update(conversation.id, conversation);
}

async function change(id, edit) {
  const conversation = await find(id);
  if (!conversation) return;
  edit(conversation);
  await keep(conversation);
  if (conversation === current) showTitle();
}

function removed(ids) {
  for (const id of ids) {
    const answer = running.get(id);
    if (answer) answer.conversation.isRemoved = true;
    answer?.abort.abort();
    if (id === current.id) {
      current.isRemoved = true;
      location.hash = '';
    }
  }
}

/** Another tab has changed a conversation. */
async function changedElsewhere(id) {
  const kept = await store.get(id);
  sidebar.update(id, kept);
  const isMine = id !== current.id || running.has(id) || document.querySelector('.editing');
  if (!isMine && kept && kept.revision > current.revision) open(kept);
}

// Showing

/** Shows the conversation that the address names, or an empty one. */
async function openAddress() {
  const id = location.hash.slice(1);
  if (id && id === current.id) return;
  const conversation = id ? await find(id) : null;
  if (location.hash.slice(1) !== id) return;
  if (id && !conversation) history.replaceState(null, '', location.pathname + location.search);
  open(conversation ?? talk.create());
  if (matchMedia('(pointer: fine)').matches) prompt.focus();
}

function open(conversation) {
  current = conversation;
  for (const message of conversation.messages) {
    // Neither this tab nor another writes at it any more, or the other keeps it soon.
    if (message.end === null && running.get(conversation.id)?.message !== message) {
      Object.assign(message, {
        end: 'broken',
        problem: 'The page was closed before the answer was complete.',
      });
    }
  }
  sidebar.select(conversation.id);
  views = new Map();
  $('log').replaceChildren();
  follows = true;
  showPath();
}

/** Brings the shown messages up to date with the conversation. */
function showPath() {
  const shown = talk.path(current);
  const ids = new Set(shown.map(message => message.id));
  for (const [id, view] of views) {
    if (ids.has(id)) continue;
    view.article.remove();
    views.delete(id);
  }
  for (const message of shown) {
    if (!views.has(message.id)) {
      const view = new MessageView(message, act);
      views.set(message.id, view);
      $('log').append(view.article);
    }
    draw(message);
  }
  $('empty').hidden = shown.length > 0;
  showTitle();
  showControls();
  stayAtEnd();
}

function draw(message) {
  const view = views.get(message.id);
  if (view?.message === message)
    view.draw(talk.versions(current, message), message.id === current.leaf);
}

function showTitle() {
  $('title').textContent = current.title;
  document.title = current.messages.length > 0 ? `${current.title} – BitNet.rs` : 'BitNet.rs';
}

function showControls() {
  const isRunning = running.has(current.id);
  const hadFocus = [$('send'), $('stop')].includes(document.activeElement);
  $('send').hidden = isRunning;
  $('stop').hidden = !isRunning;
  if (hadFocus) prompt.focus();
  const [call] = talk.openCalls(current);
  prompt.placeholder = call ? `Result of ${call.name}` : 'Message';
  prompt.setAttribute('aria-label', prompt.placeholder);
}

function nameAddress() {
  history.replaceState(null, '', `#${current.id}`);
  sidebar.select(current.id);
}

/**
 * Shows the changes once a frame: a fast model writes more tokens than a page can be laid out for.
 */
function drawSoon(message) {
  if (changed.size === 0) requestAnimationFrame(drawChanged);
  changed.add(message);
}

function drawChanged() {
  for (const message of changed) draw(message);
  changed.clear();
  stayAtEnd();
}

function stayAtEnd() {
  if (follows) scroller.scrollTop = scroller.scrollHeight;
  $('latest').hidden = isAtEnd();
}

const isAtEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 40;

scroller.onscroll = () => {
  follows = isAtEnd();
  $('latest').hidden = follows;
};
$('latest').onclick = () => {
  follows = true;
  stayAtEnd();
  prompt.focus();
};

/** Says something to screen readers. */
function say(words) {
  $('status').textContent = words;
}

// Answering

function requestBody(conversation, parent) {
  const messages = talk.toRequest(talk.path(conversation, parent));
  if (systemMessage()) messages.unshift({ role: 'system', content: systemMessage() });
  const stream_options = { include_usage: true, continuous_usage_stats: true };
  return { ...requestFields(), messages, stream: true, stream_options };
}

/**
 * Answers the message `parent`. `message` is an earlier answer without content, which this one
 * replaces.
 */
async function answer(conversation, parent, message = null) {
  const fresh = {
    role: 'assistant',
    content: '',
    reasoning: '',
    calls: [],
    end: null,
    problem: null,
    speed: null,
    model: chosenModel(),
    showsModel: hasChoice(),
  };
  if (message) Object.assign(message, fresh);
  else message = talk.add(conversation, parent, fresh);
  const abort = new AbortController();
  const run = { conversation, message, abort };
  running.set(conversation.id, run);
  follows = true;
  await begin(conversation);
  say('The model answers.');
  try {
    await receive(run, requestBody(conversation, parent));
  } catch (error) {
    failed(message, error);
  }
  running.delete(conversation.id);
  await end(conversation, message);
}

async function begin(conversation) {
  conversation.updated = Date.now();
  if (conversation === current) showPath();
  if (conversation === current) nameAddress();
  await keep(conversation);
}

/** Reads the chunks of an answer into its message. */
async function receive({ conversation, message, abort }, body) {
  const clock = new Clock();
  let lastKept = performance.now();
  for await (const chunk of api.chat(body, abort.signal)) {
    const [choice] = chunk.choices;
    const isText = take(message, choice?.delta ?? {});
    message.speed = clock.count(isText, chunk.usage) ?? message.speed;
    message.finish = choice?.finish_reason ?? message.finish;
    drawSoon(message);
    if (performance.now() - lastKept > KEEP_PAUSE_MS) {
      lastKept = performance.now();
      keep(conversation);
    }
  }
  message.end = message.finish ?? 'stop';
}

/** Adds a chunk's text to a message. Returns whether there was any. */
function take(message, { content, reasoning_content: reasoning, tool_calls: calls = [] }) {
  message.content += content ?? '';
  message.reasoning += reasoning ?? '';
  for (const { index, id, function: called } of calls) {
    message.calls[index] ??= { id, name: called.name, arguments: '' };
    message.calls[index].arguments += called.arguments;
  }
  return Boolean(content || reasoning || calls.length > 0);
}

/** How fast an answer comes. */
class Clock {
  #start = performance.now();
  #first = null;
  #firstTokens = 0;
  #pieces = 0;

  /** Counts a chunk. Returns the numbers to show, or null before the first text. */
  count(isText, usage) {
    const now = performance.now();
    this.#pieces += isText ? 1 : 0;
    const tokens = usage?.completion_tokens ?? this.#pieces;
    if (this.#first === null) {
      if (!isText) return null;
      this.#first = now;
      this.#firstTokens = tokens;
    }
    if (isText) this.last = now;
    const seconds = (this.last - this.#first) / 1000;
    return {
      tokens,
      reasoningTokens: usage?.completion_tokens_details?.reasoning_tokens ?? 0,
      perSecond:
        seconds > 0 && tokens > this.#firstTokens ? (tokens - this.#firstTokens) / seconds : 0,
      firstAfter: (this.#first - this.#start) / 1000,
    };
  }
}

function failed(message, error) {
  if (error.name === 'AbortError') {
    message.end = 'stopped';
    return;
  }
  message.end = 'broken';
  message.problem = error.message;
  if (error.retryAfter) message.problem += ` Try again in ${error.retryAfter} s.`;
  if (error.status === 401) askForKey(error.message);
}

async function end(conversation, message) {
  conversation.updated = Date.now();
  delete message.finish;
  if (conversation === current) {
    changed.delete(message);
    draw(message);
    showPath();
    const text = views.get(message.id)?.text.trim() ?? '';
    say(message.problem ?? (text ? text.slice(0, READ_MAX) : 'The answer is complete.'));
  }
  await keep(conversation);
  if (hasChoice()) showModels();
}

/** Sends a text: the result of a tool if the model waits for one, else a message. */
function send(text) {
  if (!text || running.has(current.id)) return;
  put('');
  const [call, ...more] = talk.openCalls(current);
  const message = call
    ? { role: 'tool', callId: call.id, name: call.name, content: text }
    : { role: 'user', content: text };
  const { id } = talk.add(current, current.leaf, message);
  if (more.length === 0) return answer(current, id);
  return begin(current);
}

// What the buttons below messages do

const ACTS = {
  copy({ content }, button) {
    copyFor(button, content);
  },
  edit(message) {
    views.get(message.id).edit(text => {
      if (!text || text === message.content || running.has(current.id)) return;
      const { id } = talk.add(current, message.parent, { role: 'user', content: text });
      answer(current, id);
    });
  },
  again(message) {
    if (running.has(current.id)) return;
    const isEmpty = !message.content && !message.reasoning && message.calls.length === 0;
    answer(current, message.parent, isEmpty ? message : null);
  },
  choose(message) {
    if (running.has(current.id)) return;
    talk.choose(current, message);
    follows = false;
    showPath();
    views.get(message.id).article.querySelector('.versions button:enabled')?.focus();
    keep(current);
  },
};

function act(name, message, button) {
  ACTS[name](message, button);
}

async function copyFor(button, text) {
  const words = await copy(text).then(
    () => 'Copied',
    () => 'Not copied',
  );
  button.textContent = words;
  say(words);
  setTimeout(() => {
    button.textContent = 'Copy';
  }, COPIED_MS);
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Browsers have no clipboard for a page over plain HTTP from another machine, but they still have
  // this.
  const area = element('textarea', { readonly: true, class: 'hidden' });
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand('copy');
  area.remove();
  if (!isCopied) throw new Error('this browser lets no page copy');
}

$('log').addEventListener('click', event => {
  const button = event.target.closest('.copy-code');
  if (button) copyFor(button, button.closest('.code').querySelector('code').textContent);
});

// Writing

/** Puts a text where one is written. */
function put(text) {
  prompt.value = text;
  prompt.style.height = 'auto';
  if (text) prompt.style.height = `${prompt.scrollHeight}px`;
}

$('form').onsubmit = event => {
  event.preventDefault();
  send(prompt.value.trim());
};
prompt.onkeydown = event => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $('form').requestSubmit();
};
prompt.oninput = () => put(prompt.value);
$('stop').onclick = () => running.get(current.id)?.abort.abort();
$('new').onclick = $('new-here').onclick = () => {
  sidebar.hide();
  if (location.hash) location.hash = '';
  else if (current.messages.length > 0) open(talk.create());
  prompt.focus();
};
document.addEventListener('keydown', event => {
  if (event.key !== 'Escape' || document.querySelector('dialog[open]')) return;
  if (!sidebar.hide()) running.get(current.id)?.abort.abort();
});
addEventListener('hashchange', openAddress);
addEventListener('pagehide', () => {
  for (const { conversation } of running.values()) store.putAtOnce(conversation);
});

$('starts').onclick = event => {
  if (event.target.localName === 'button') send(event.target.textContent);
};
new ResizeObserver(stayAtEnd).observe(scroller);

setUpOptions(() => prompt.focus());
if (!store.isLasting)
  $('promise').textContent =
    'Messages go only to this server. This browser keeps no conversations.';
store.watch(changedElsewhere);
await Promise.all([showModels(), sidebar.load(), openAddress()]);
